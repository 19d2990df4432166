"""Switches that trade time for memory in forward and backward of long rows.

Results and gradients stay what they are: the same operations run on the same numbers, some of them
twice (checkpointing), on fewer tokens at a time (tiles), or after a trip to CPU memory.

T packed tokens . D hidden . V vocab.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from polaris_kernels.problem import CHUNK_BYTES_CPU, CHUNK_BYTES_GPU

from ..config import Config
from ..types import UserError

# Linear layers, and attention by every kernel that `model.attention` may end in. The delta rule's
# small products inside its chunks (bmm) are made again.
_KEPT_OPERATORS = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "flash_attn::_flash_attn_varlen_forward",
        "torch_attn::_varlen_attn",
    }
)
_LEAST_CHUNK = (
    256 * 2**20
)  # bytes; 151,936 x 256 on a CPU: 3 % slower than 512 MiB, half of it 11 %


def install_memory_savers(model: Any, config: Config) -> None:
    """Switch on what the configuration asks for, in place; no parameter is renamed.

    Raises:
        UserError: `mlp_tile_tokens` is set and the model's layers have no `mlp` of one input.
    """
    if config.gradient_checkpointing:
        options: dict[str, Any] = {"use_reentrant": False}
        if config.gradient_checkpointing == "selective":
            options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
        model.gradient_checkpointing_enable(options)
    if config.mlp_tile_tokens:
        _tile_mlps(model, config.mlp_tile_tokens)


def _keep_products(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Whether an operation's result is kept: those that cost FLOPs, not those that move memory."""
    return (
        CheckpointPolicy.MUST_SAVE
        if op.name() in _KEPT_OPERATORS
        else CheckpointPolicy.PREFER_RECOMPUTE
    )


def kept_activations(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """The block in which the body's forward runs: what it keeps for backward goes where configured.

    With checkpointing that is each layer's input, (T, D), and nothing that is made again.
    """
    if not config.offload_activations:
        return nullcontext()
    return torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda")


def logits_chunk_bytes(config: Config, hidden_size: int, vocab_size: int, device_type: str) -> int:
    """Bytes of logits that the head makes at a time.

    Every chunk reads and writes the whole (V, D) sum of weight gradients once: chunks of twice its
    size spend less on that than on their own logits, and a small head needs no larger ones.
    """
    if config.logits_chunk_mib is not None:
        return config.logits_chunk_mib * 2**20
    most = CHUNK_BYTES_CPU if device_type == "cpu" else CHUNK_BYTES_GPU
    return min(most, max(_LEAST_CHUNK, 2 * hidden_size * vocab_size * 4))


def _tile_mlps(model: Any, num_tokens: int) -> None:
    for layer in model.get_decoder().layers:
        mlp = getattr(layer, "mlp", None)
        if mlp is None or not hasattr(mlp, "down_proj"):
            raise UserError(
                f"mlp_tile_tokens: the layers of {type(model).__name__} have no plain MLP to tile; "
                "set mlp_tile_tokens to 0"
            )
        mlp.forward = partial(_in_tiles, mlp.forward, num_tokens)


def _in_tiles(forward: Callable[[Tensor], Tensor], num_tokens: int, hidden: Tensor) -> Tensor:
    """The MLP on `num_tokens` at a time: its wide activations never exist for all tokens.

    Args:
        hidden: (..., T, D); a token's result depends on that token alone.
    """
    if hidden.shape[-2] <= num_tokens:
        return forward(hidden)
    tiles = hidden.split(num_tokens, dim=-2)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(forward, tile, use_reentrant=False) for tile in tiles], -2)
    return torch.cat([forward(tile) for tile in tiles], -2)
