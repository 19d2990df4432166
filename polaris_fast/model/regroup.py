"""Move packed tokens into the slots of a rectangle and back, exactly, in forward and backward.

Shapes: T rows in, S slots out, d row width.

Each row is used once, so the backward of one move is the other move: two gathers, where autograd's
own backward of `index_select` would be a scatter-add.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from polaris_fast.model.layout import Regroup


def spread(rows: Tensor, plan: Regroup) -> Tensor:
    """out[s] = rows[source[s]], and zero in empty slots.

    Args:
        rows: (T, ...) any dtype.
    Returns:
        (S, ...)
    """
    return _Spread.apply(rows, plan)


def collect(slots: Tensor, plan: Regroup) -> Tensor:
    """out[t] = slots[slot[t]]: the inverse of `spread`, empty slots are dropped.

    Args:
        slots: (S, ...) any dtype.
    Returns:
        (T, ...)
    """
    return _Collect.apply(slots, plan)


def _spread(rows: Tensor, plan: Regroup) -> Tensor:
    slots = rows.index_select(0, plan.source)
    return slots.index_fill_(0, plan.empty, 0) if plan.empty.numel() else slots


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: Regroup) -> Tensor:
        ctx.plan = plan
        return _spread(rows, plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.plan.slot), None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slots: Tensor, plan: Regroup) -> Tensor:
        ctx.plan = plan
        return slots.index_select(0, plan.slot)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _spread(grad, ctx.plan), None
