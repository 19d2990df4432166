"""Log-probs and built-in losses from logits. Backward reads the logits once more
than in eager mode, where row statistics are kept: an operator has only what it was given.

Shapes: `N tokens . V vocab . M metrics`; logits and targets as in the public functions.
"""

from typing import Any

import torch
from torch import Tensor

from ..backends.logits_pass import logits_gradient, logits_statistics
from ..logits import LogitsLoss, prepare_logits_loss, prepare_logps
from ..loss_call import scale_gradients
from ..objective import TokenGradients
from ..problem import accumulation_dtype
from .arguments import ROWS, spec_from_text, stack_metrics, unpack_rows

_LOGITS = "Tensor logits, Tensor targets, Tensor? temperatures, float temperature, str? backend"


@torch.library.custom_op(
    "polaris_kernels::selective_logps",
    mutates_args=(),
    schema=f"({_LOGITS}) -> (Tensor logps, Tensor entropy, Tensor lse)",
)
def selective_logps(
    logits: Tensor, targets: Tensor, temperatures: Any, temperature: float, backend: str | None
) -> tuple[Tensor, ...]:
    """(N,) each."""
    given = temperature if temperatures is None else temperatures
    problem, flat = prepare_logps(logits, targets, given, False, backend)
    found = logits_statistics(problem, flat)[1]
    return found.logp, found.entropy, found.lse


@selective_logps.register_fake
def _(logits, targets, temperatures, temperature, backend):
    dtype = accumulation_dtype(logits.dtype)
    return tuple(logits.new_empty(targets.numel(), dtype=dtype) for _ in range(3))


@torch.library.custom_op(
    "polaris_kernels::selective_logps_backward",
    mutates_args=(),
    schema=f"({_LOGITS}, Tensor? g_logp, Tensor? g_entropy, Tensor? g_lse) -> Tensor",
)
def selective_logps_backward(
    logits: Tensor, targets: Tensor, temperatures: Any, temperature: float, backend: str | None,
    g_logp: Any, g_entropy: Any, g_lse: Any,
) -> Tensor:  # fmt: skip
    """The gradient by logits, of their shape and dtype."""
    given = temperature if temperatures is None else temperatures
    problem, flat = prepare_logps(logits, targets, given, False, backend)
    rows, _ = logits_statistics(problem, flat)
    known = TokenGradients(g_logp, g_entropy, g_lse)
    return logits_gradient(problem, flat, rows, known).view(logits.shape)


@selective_logps_backward.register_fake
def _(logits, *_rest):
    return logits.new_empty(logits.shape)


def _keep_logits(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3])
    ctx.rest = inputs[3:]


def _through_logits(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    if all(g is None for g in grads):
        return (None,) * 5
    made = selective_logps_backward(*ctx.saved_tensors, *ctx.rest, *grads)
    return (made, *(None,) * 4)


selective_logps.register_autograd(_through_logits, setup_context=_keep_logits)


@torch.library.custom_op(
    "polaris_kernels::grpo_loss",
    mutates_args=(),
    schema=f"({_LOGITS}, {ROWS}) -> (Tensor loss, Tensor metrics, Tensor logps, Tensor entropy)",
)
def grpo_loss(
    logits: Tensor, targets: Tensor, temperatures: Any, temperature: float, backend: str | None,
    rows: list[Tensor], row_fields: str, num_rows: int, spec: str, metrics: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Loss (), metrics (M,) in the order of their names, logps and entropy (N,)."""
    head = (logits, targets, temperatures, temperature, backend)
    call = _loss(head, rows, row_fields, num_rows, spec)
    _, statistics, _ = call.run()
    loss, named = call.objective.finish(statistics.logp, statistics.entropy)
    logps, entropy = call.scatter(statistics.logp), call.scatter(statistics.entropy)
    return loss, stack_metrics(named, metrics), logps, entropy


@grpo_loss.register_fake
def _(
    logits, targets, temperatures, temperature, backend, rows, row_fields, num_rows, spec, metrics
):
    shapes = ((), (len(metrics.split(",")),), (targets.numel(),), (targets.numel(),))
    dtype = accumulation_dtype(logits.dtype)
    return tuple(logits.new_empty(shape, dtype=dtype) for shape in shapes)


@torch.library.custom_op(
    "polaris_kernels::grpo_loss_backward",
    mutates_args=(),
    schema=f"({_LOGITS}, {ROWS}, Tensor grad_loss) -> Tensor",
)
def grpo_loss_backward(
    logits: Tensor, targets: Tensor, temperatures: Any, temperature: float, backend: str | None,
    rows: list[Tensor], row_fields: str, num_rows: int, spec: str, metrics: str, grad_loss: Tensor,
) -> Tensor:  # fmt: skip
    """The gradient by logits, of their shape and dtype."""
    head = (logits, targets, temperatures, temperature, backend)
    call = _loss(head, rows, row_fields, num_rows, spec)
    state, _, known = call.run()
    scaled = scale_gradients(known, grad_loss)
    return logits_gradient(call.problem, call.flat, state, scaled).view(logits.shape)


@grpo_loss_backward.register_fake
def _(logits, *_rest):
    return logits.new_empty(logits.shape)


def _keep_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    rows = inputs[5]
    ctx.num_rows_tensors = len(rows)
    ctx.save_for_backward(*inputs[:3], *rows)
    ctx.options, ctx.texts = inputs[3:5], inputs[6:]


def _through_loss(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    # a list of tensors is answered by a list
    rest = (*(None,) * 4, [None] * ctx.num_rows_tensors, *(None,) * 4)
    if grad_loss is None:
        return (None, *rest)
    logits, targets, temperatures, *rows = ctx.saved_tensors
    made = grpo_loss_backward(
        logits, targets, temperatures, *ctx.options, rows, *ctx.texts, grad_loss
    )
    return (made, *rest)


grpo_loss.register_autograd(_through_loss, setup_context=_keep_loss)


def _loss(
    head: tuple[Any, ...], rows: list[Tensor], row_fields: str, num_rows: int, spec: str
) -> LogitsLoss:
    logits, targets, temperatures, temperature, backend = head
    given = temperature if temperatures is None else temperatures
    loss_rows = unpack_rows(rows, row_fields, num_rows)
    return prepare_logits_loss(
        logits, targets, loss_rows, spec_from_text(spec), None, given, False, backend
    )
