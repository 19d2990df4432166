"""Tiny random models of the supported families: the embedded demo's policy, and every test's.

The Qwen3.5 one is hybrid like the real ones: three gated-delta-net layers, then one of full
attention, with partial rotary embedding, an output gate and fewer key than value heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Family = Literal["qwen3_5", "qwen3", "llama"]


def tiny_config(
    family: Family = "qwen3_5",
    *,
    vocab_size: int = 1024,
    hidden_size: int = 64,
    num_layers: int = 4,
    intermediate_size: int | None = None,
    num_heads: int = 2,
    num_key_value_heads: int = 1,
    head_dim: int = 32,
    linear_num_key_heads: int = 1,
    linear_num_value_heads: int = 2,
    linear_head_dim: int = 64,
    tie_word_embeddings: bool = False,
    max_position_embeddings: int = 2048,
    initializer_range: float = 0.02,
    **extra: Any,
) -> PreTrainedConfig:
    """A config of the family with small sizes.

    Args:
        intermediate_size: MLP width, three times hidden_size if None.
        linear_head_dim: key and value head dim of the delta-net layers (vLLM's CPU build serves 64
            and 128).
        extra: further fields of the family's config, such as eos_token_id.
    Errors: ValueError for an unknown family.
    """
    from transformers import LlamaConfig, Qwen3_5TextConfig, Qwen3Config

    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size or 3 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": head_dim,
        "tie_word_embeddings": tie_word_embeddings,
        "max_position_embeddings": max_position_embeddings,
        "initializer_range": initializer_range,
        "bos_token_id": None,
        "eos_token_id": None,
        **extra,
    }
    if family == "llama":
        return LlamaConfig(**shared)
    if family == "qwen3":
        return Qwen3Config(**shared)
    if family != "qwen3_5":
        known = ", ".join(get_args(Family))
        raise ValueError(f"tiny_config: family must be one of {known}, got {family!r}")
    # Half of each head is rotated; the three sections (time, height, width) share that half.
    frequencies = head_dim // 4
    sections = [frequencies - 2 * (frequencies // 4), frequencies // 4, frequencies // 4]
    return Qwen3_5TextConfig(
        **shared,
        linear_num_key_heads=linear_num_key_heads,
        linear_num_value_heads=linear_num_value_heads,
        linear_key_head_dim=linear_head_dim,
        linear_value_head_dim=linear_head_dim,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": sections,
            "mrope_interleaved": True,
        },
    )


def tiny_model(
    family: Family = "qwen3_5", *, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any
) -> PreTrainedModel:
    """A randomly initialised causal LM of the family, the same for the same seed and sizes.

    Args:
        seed: of the weights; the caller's random state is left as it was.
        sizes: arguments of `tiny_config`.
    Returns:
        the model in eval mode, without packing or fused head (see `polaris_fast.model.load`).
    """
    from transformers import AutoModelForCausalLM

    config = tiny_config(family, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
