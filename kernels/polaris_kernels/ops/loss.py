"""The built-in losses of the head: gradients are made in forward, backward scales them.

Shapes: `N tokens . D hidden . V vocab . M metrics`. A gradient that is not wanted is an empty
tensor.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..backends.base import Wanted
from ..loss_call import prepare_loss
from ..problem import grad_dtype_of
from .arguments import (
    HEAD,
    NUM_OPTIONS,
    OPTIONS,
    ROWS,
    acc_dtype,
    spec_from_text,
    stack_metrics,
    unpack_options,
    unpack_rows,
)


@torch.library.custom_op(
    "polaris_kernels::linear_grpo_loss",
    mutates_args=(),
    schema=f"({HEAD}, Tensor? grad_scale, {ROWS}, bool[] wanted, {OPTIONS}) -> (Tensor loss, "
    "Tensor metrics, Tensor logps, Tensor entropy, Tensor d_hidden, Tensor d_weight, "
    "Tensor d_bias)",
)
def linear_grpo_loss(
    hidden: Tensor, weight: Tensor, bias: Any, targets: Tensor, temperatures: Any, grad_scale: Any,
    rows: list[Tensor], row_fields: str, num_rows: int, spec: str, metrics: str,
    wanted: list[bool], *options: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Loss (), metrics (M,) in the order of their names, logps and entropy (N,), gradients."""
    call, _ = prepare_loss(
        hidden, weight, bias, targets, unpack_rows(rows, row_fields, num_rows),
        spec_from_text(spec), unpack_options(temperatures, options), Wanted(*wanted),
    )  # fmt: skip
    if grad_scale is not None:
        call.grad_scale = grad_scale
    loss, named, statistics, made = call.run()
    if made.weight is not None:
        # a backend may have rounded it already; the fake promises the accumulation dtype
        made = replace(made, weight=made.weight.to(statistics.logp.dtype))
    if made.hidden is not None and call.index is not None:
        # the gradient of index_select, which eager mode leaves to autograd
        full = made.hidden.new_zeros(hidden.shape)
        made = replace(made, hidden=full.index_copy_(0, call.index, made.hidden))
    return (
        loss,
        stack_metrics(named, metrics),
        call.scatter(statistics.logp),
        call.scatter(statistics.entropy),
        *(hidden.new_empty(0) if g is None else g for g in (made.hidden, made.weight, made.bias)),
    )


@linear_grpo_loss.register_fake
def _(
    hidden, weight, bias, targets, temperatures, grad_scale, rows, row_fields, num_rows,
    spec, metrics, wanted, *options,
):  # fmt: skip
    acc = acc_dtype(options)
    N, V = hidden.shape[0], weight.shape[0]
    shapes = ((), (len(metrics.split(",")),), (N,), (N,))
    dtypes = (grad_dtype_of(hidden), acc, acc)
    gradients = (
        hidden.new_empty(shape, dtype=dtype) if asked else hidden.new_empty(0)
        for shape, dtype, asked in zip(
            (hidden.shape, weight.shape, (V,)), dtypes, wanted, strict=True
        )
    )
    return (*(hidden.new_empty(shape, dtype=acc) for shape in shapes), *gradients)


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[4:])
    ctx.dtypes = tuple(None if x is None else x.dtype for x in inputs[:3])
    ctx.num_rows_tensors, ctx.wanted = len(inputs[6]), inputs[11]


def _scale_gradients(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    # a list of tensors is answered by a list
    rest = (None, None, None, [None] * ctx.num_rows_tensors, *(None,) * (5 + NUM_OPTIONS))
    if grad_loss is None:
        return (None, None, None, *rest)
    # by way of the loss's dtype: in a half type the factor itself would be rounded
    scaled = (
        (made.to(grad_loss.dtype) * grad_loss).to(dtype) if asked else None
        for made, dtype, asked in zip(ctx.saved_tensors, ctx.dtypes, ctx.wanted, strict=True)
    )
    return (*scaled, *rest)


linear_grpo_loss.register_autograd(_scale_gradients, setup_context=_keep_gradients)
