"""Memory of writing stories with the training weights (`rollout.engine: hf`)."""

from __future__ import annotations

from ..config import Config
from .shapes import ModelShape

# fp32 logits, their log-softmax, the filtered copy, its softmax and running sum, sorted ids
_SAMPLING_BYTES = 28


def rows_per_rank(config: Config, num_ranks: int) -> int:
    """Stories that a rank writes in a step, human rows off (the first step's)."""
    return -(-config.prompts_per_step * config.num_generations // num_ranks)


def cache_bytes_per_token(config: Config, shape: ModelShape) -> int:
    """Keys and values of all attention layers for one token."""
    item = 2 if config.dtype == "bfloat16" else 4
    heads = shape.config.num_key_value_heads
    return 2 * heads * shape.head_dim * item * shape.num_attention_layers


def state_bytes_per_row(config: Config, shape: ModelShape) -> int:
    """Recurrent state (fp32) and convolution window of all delta-net layers for one row."""
    item = 2 if config.dtype == "bfloat16" else 4
    model = shape.config
    layers = shape.layer_kinds.count("linear_attention")
    if not layers:
        return 0
    key, value = model.linear_key_head_dim, model.linear_value_head_dim
    heads = model.linear_num_value_heads
    channels = 2 * model.linear_num_key_heads * key + heads * value
    return layers * (heads * key * value * 4 + channels * model.linear_conv_kernel_dim * item)


def generation_bytes(
    config: Config, shape: ModelShape, num_ranks: int
) -> tuple[tuple[str, int], ...]:
    """Cache at the longest rows, and what one decode step needs for a moment."""
    rows = min(rows_per_rank(config, num_ranks), config.rollout.max_batch_size)
    length = config.max_prompt_length + (config.max_completion_length or 0)
    per_token = cache_bytes_per_token(config, shape)
    cache = rows * (length * per_token + state_bytes_per_row(config, shape))
    # a layer's keys and values are copied to grow, then repeated for the query heads they serve
    layer = rows * length * per_token // max(shape.num_attention_layers, 1)
    repeats = shape.config.num_attention_heads // shape.config.num_key_value_heads
    working = (
        layer * (repeats if repeats > 1 else 1) + rows * shape.config.vocab_size * _SAMPLING_BYTES
    )
    return (("KV cache and states", cache), ("working tensors", working))
