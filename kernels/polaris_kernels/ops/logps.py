"""Log-probs of the head: `linear_logps`, whose backward makes the logits again, and
`linear_logps_frozen`, which keeps unit gradients by hidden and scales them.

Shapes: `N tokens . D hidden . V vocab`. A result that is not wanted is an empty tensor.
"""

from typing import Any

import torch
from torch import Tensor

from ..backends.base import HeadBackend, Statistics, Wanted
from ..foreseen import Foreseen, RowRule
from ..loss_call import cut_gradients, prepare_head
from ..objective import TokenGradients
from ..problem import HeadProblem, grad_dtype_of
from .arguments import HEAD, NUM_OPTIONS, OPTIONS, acc_dtype, unpack_options


@torch.library.custom_op(
    "polaris_kernels::linear_logps",
    mutates_args=(),
    schema=f"({HEAD}, {OPTIONS}) -> (Tensor logps, Tensor entropy, Tensor lse)",
)
def linear_logps(
    hidden: Tensor, weight: Tensor, bias: Any, targets: Tensor, temperatures: Any, *options: Any
) -> tuple[Tensor, ...]:
    """(N,) each."""
    problem, backend = _head(hidden, weight, bias, targets, temperatures, options)
    return _results(backend.statistics(problem))


@linear_logps.register_fake
def _(hidden, weight, bias, targets, temperatures, *options):
    return tuple(hidden.new_empty(hidden.shape[0], dtype=acc_dtype(options)) for _ in range(3))


@torch.library.custom_op(
    "polaris_kernels::linear_logps_backward",
    mutates_args=(),
    schema=f"({HEAD}, Tensor? g_logp, Tensor? g_entropy, Tensor? g_lse, bool[] wanted, {OPTIONS})"
    " -> (Tensor d_hidden, Tensor d_weight, Tensor d_bias)",
)
def linear_logps_backward(
    hidden: Tensor, weight: Tensor, bias: Any, targets: Tensor, temperatures: Any,
    g_logp: Any, g_entropy: Any, g_lse: Any, wanted: list[bool], *options: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients in the dtypes of the leaves."""
    problem, backend = _head(hidden, weight, bias, targets, temperatures, options)
    known = TokenGradients(g_logp, g_entropy, g_lse)
    _, made = backend.gradients(
        problem,
        Foreseen(
            lambda tokens, _: cut_gradients(known, tokens),
            lambda tokens: RowRule(cut_gradients(known, tokens)),
        ),
        Wanted(*wanted),
        entropy_gradient=g_entropy is not None,
    )
    leaves = (hidden, weight, bias)
    return tuple(
        hidden.new_empty(0) if g is None else g.to(leaf.dtype)
        for g, leaf in zip((made.hidden, made.weight, made.bias), leaves, strict=True)
    )


@linear_logps_backward.register_fake
def _(hidden, weight, bias, targets, temperatures, g_logp, g_entropy, g_lse, wanted, *options):
    leaves = (hidden, weight, bias)
    return tuple(
        leaf.new_empty(leaf.shape) if asked else hidden.new_empty(0)
        for leaf, asked in zip(leaves, wanted, strict=True)
    )


def _keep_head(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _through_logits(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    nothing = (None,) * NUM_OPTIONS
    wanted = list(ctx.needs_input_grad[:3])
    if all(g is None for g in grads):
        return (None,) * 5 + nothing
    made = linear_logps_backward(*ctx.saved_tensors, *grads, wanted, *ctx.options)
    kept = (g if asked else None for g, asked in zip(made, wanted, strict=True))
    return (*kept, None, None, *nothing)


linear_logps.register_autograd(_through_logits, setup_context=_keep_head)


@torch.library.custom_op(
    "polaris_kernels::linear_logps_frozen",
    mutates_args=(),
    schema=f"({HEAD}, bool[] outputs, {OPTIONS}) -> (Tensor logps, Tensor entropy, Tensor lse, "
    "Tensor unit_logp, Tensor unit_entropy, Tensor unit_lse)",
)
def linear_logps_frozen(
    hidden: Tensor, weight: Tensor, bias: Any, targets: Tensor, temperatures: Any,
    outputs: list[bool], *options: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(N,) each, and for each wanted output its unit gradient by hidden (N, D)."""
    problem, backend = _head(hidden, weight, bias, targets, temperatures, options)
    names = ("logp", "entropy", "lse")
    wanted = tuple(name for name, asked in zip(names, outputs, strict=True) if asked)
    statistics, units = backend.unit_gradients(problem, wanted)
    nothing = lambda: hidden.new_empty(0, dtype=problem.hidden_grad_dtype)
    return (*_results(statistics), *(units[n] if n in units else nothing() for n in names))


@linear_logps_frozen.register_fake
def _(hidden, weight, bias, targets, temperatures, outputs, *options):
    values = tuple(hidden.new_empty(hidden.shape[0], dtype=acc_dtype(options)) for _ in range(3))
    dtype = grad_dtype_of(hidden)
    return values + tuple(
        hidden.new_empty(hidden.shape if asked else (0,), dtype=dtype) for asked in outputs
    )


def _keep_units(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    units = output[3:]
    ctx.mark_non_differentiable(*units)
    ctx.save_for_backward(*units)
    ctx.dtype = inputs[0].dtype


def _through_units(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    total = None
    for unit, grad in zip(ctx.saved_tensors, grads[:3], strict=True):
        if grad is not None and unit.dim() == 2:
            part = unit * grad.unsqueeze(1)
            total = part if total is None else total + part
    rest = (None,) * (5 + NUM_OPTIONS)
    return (None if total is None else total.to(ctx.dtype), *rest)


linear_logps_frozen.register_autograd(_through_units, setup_context=_keep_units)


def _head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperatures: Tensor | None,
    options: tuple[Any, ...],
) -> tuple[HeadProblem, HeadBackend]:
    return prepare_head(
        hidden, weight, bias, targets, unpack_options(temperatures, options), "linear_logps"
    )


def _results(statistics: Statistics) -> tuple[Tensor, ...]:
    return statistics.logp, statistics.entropy, statistics.lse
