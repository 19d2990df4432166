"""A model's own eager attention, as the reference of the start-up probe.

It is the function by which transformers' modelling file defines its attention, sinks and caps
included. It computes in float32 at least: eager scores in bfloat16 are further from exact ones than
the kernels that are to be judged.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_NAME = "polaris_eager"


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Inside the block the model's attention layers run their own eager function."""
    before = model.config._attn_implementation
    model.set_attn_implementation(_register())
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@cache
def _register() -> str:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(_NAME, _eager)
    AttentionMaskInterface.register(_NAME, eager_mask)
    return _NAME


def _eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """(B, T, H, d) by the function that stands beside the layer's class; sdpa where none does."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    beside = sys.modules[type(module).__module__]
    attend = getattr(beside, "eager_attention_forward", sdpa_attention_forward)
    wide = torch.promote_types(query.dtype, torch.float32)
    out, _ = attend(module, query.to(wide), key.to(wide), value.to(wide), *args, **kwargs)
    return out.to(query.dtype), None
