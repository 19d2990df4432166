"""The project's own Triton kernels for gated-delta-net layers (`polaris_kernels.gated_delta`).

Shapes: T packed tokens, H key heads, G value heads per key head, K key head dim, V value head dim.

They take fla's place where it is missing or fails its probe, and have to pass the same one.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from polaris_fast.model.delta_fla import rule_is_right
from polaris_fast.model.layout import PackedLayout
from polaris_kernels.gated_delta import gated_delta_rule


def triton_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, layout: PackedLayout
) -> Tensor:
    """`packed_gated_delta_rule` in Triton: q, k (T, H, K), v (T, H * G, V), g, beta (T, H * G)."""
    return gated_delta_rule(q, k, v, g, beta, layout.row_chunks)


@cache
def triton_is_right(device: torch.device) -> bool:
    """Whether the kernels pass the probe on this device; asked once, and logged when not."""
    return rule_is_right("polaris_kernels.gated_delta", triton_gated_delta_rule, device)
