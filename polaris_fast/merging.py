"""Weights of a model with adapters, each summed only when it is asked for.

A whole merged model would be a second copy of everything that adapters touch.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Adapted:
    """W + scaling B A, not yet summed."""

    base: Tensor
    A: Tensor
    B: Tensor
    scaling: float


Weight = Tensor | Adapted


def base_of(weight: Weight) -> Tensor:
    """The tensor that tells type and shape of `whole(weight)`; costs nothing."""
    return weight.base if isinstance(weight, Adapted) else weight


def whole(weight: Weight) -> Tensor:
    """The sum, made in fp32 on the current stream; a plain tensor as it is."""
    if isinstance(weight, Tensor):
        return weight
    update = weight.B.float() @ weight.A.float()
    return update.mul_(weight.scaling).add_(weight.base).to(weight.base.dtype)
