"""Calls from inside `torch.compile`: one operator of the graph where there is one, else a break.

Dynamo traces these functions, so they only sort arguments; imported when it first meets the head.

Shapes: `N tokens . D hidden . V vocab`.
"""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from . import head, logits, ops
from .backends.base import Wanted
from .metrics import Metrics
from .objective import SpecObjective
from .ops.arguments import as_tensor, pack_options, pack_temperature, spec_to_text
from .problem import HeadOptions
from .rows import LossRows, view_rows
from .spec import LossSpec

_ROW_FIELDS = tuple(f.name for f in fields(LossRows) if f.name != "num_rows")
_eager_logps = torch.compiler.disable(head._logps, reason="a sharded vocabulary runs eagerly")
_eager_logits_loss = torch.compiler.disable(logits._grpo_loss, reason="loss_fn runs eagerly")
_eager_loss = torch.compiler.disable(
    head._grpo_loss, reason="loss_fn, vocab and accumulate_into run eagerly"
)


def logps(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    options: HeadOptions,
    outputs: tuple[str, ...],
    with_gradient: tuple[str, ...],
    wanted: Wanted,
) -> tuple[Tensor, ...]:
    """`head._logps` in a compiled graph."""
    if options.vocab is not None:
        return _eager_logps(hidden, weight, bias, targets, options, outputs, with_gradient, wanted)
    temperatures, arguments = pack_options(options)
    given = (hidden, weight, bias, targets, temperatures)
    if wanted.hidden and not (wanted.weight or wanted.bias):
        units = [name in with_gradient for name in head.LOGP_OUTPUTS]
        found = ops.linear_logps_frozen(*given, units, *arguments)[:3]
    else:
        found = ops.linear_logps(*given, *arguments)
    named = zip(head.LOGP_OUTPUTS, found, strict=True)
    return tuple(x if n in with_gradient else x.detach() for n, x in named if n in outputs)


def grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    rows: LossRows,
    spec: LossSpec,
    options: HeadOptions,
    wanted: Wanted,
    *,
    loss_fn: Any,
    loss_fn_needs_whole_rows: bool,
    grad_scale: float | Tensor,
    accumulate_into: str | None,
) -> tuple[Tensor, Metrics, Tensor, Tensor]:
    """`head._grpo_loss` in a compiled graph."""
    if loss_fn is not None or options.vocab is not None or accumulate_into is not None:
        return _eager_loss(
            hidden, weight, bias, targets, rows, spec, options, wanted,
            loss_fn=loss_fn, loss_fn_needs_whole_rows=loss_fn_needs_whole_rows,
            grad_scale=grad_scale, accumulate_into=accumulate_into,
        )  # fmt: skip
    temperatures, arguments = pack_options(options)
    scale: Tensor | None
    if isinstance(grad_scale, Tensor):
        scale = grad_scale
    else:
        scale = None if grad_scale == 1.0 else as_tensor(grad_scale, hidden.device)
    packed = _pack_loss(rows, spec, hidden)
    loss, metrics, logps, entropy, *_ = ops.linear_grpo_loss(
        hidden, weight, bias, targets, temperatures, scale, *packed,
        [wanted.hidden, wanted.weight, wanted.bias], *arguments,
    )  # fmt: skip
    return loss, _named(metrics, packed), logps, entropy


def selective_logps(
    logits: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    outputs: tuple[str, ...],
    inplace: bool,
    backend: str | None,
) -> tuple[Tensor, ...]:
    """`logits._logps` in a compiled graph, whose memory is the compiler's: never in place."""
    found = ops.selective_logps(logits, targets, *pack_temperature(temperature), backend)
    named = zip(head.LOGP_OUTPUTS, found, strict=True)
    return tuple(x for name, x in named if name in outputs)


def logits_grpo_loss(
    logits: Tensor,
    targets: Tensor,
    rows: LossRows,
    spec: LossSpec,
    loss_fn: Any,
    temperature: float | Tensor,
    inplace: bool,
    backend: str | None,
) -> tuple[Tensor, Metrics, Tensor, Tensor]:
    """`logits._grpo_loss` in a compiled graph, never in place."""
    if loss_fn is not None:
        return _eager_logits_loss(
            logits, targets, rows, spec, loss_fn, temperature, inplace, backend
        )
    packed = _pack_loss(rows, spec, logits)
    loss, metrics, logps, entropy = ops.grpo_loss(
        logits, targets, *pack_temperature(temperature), backend, *packed
    )
    return loss, _named(metrics, packed), logps, entropy


def _pack_loss(rows: LossRows, spec: LossSpec, like: Tensor) -> tuple[Any, ...]:
    """The arguments of `ops.arguments.ROWS`."""
    given = {name: getattr(rows, name) for name in _ROW_FIELDS}
    # a number is as good as a () tensor in every field that takes one
    tensors = {
        name: x if isinstance(x, Tensor) else as_tensor(x, like.device)
        for name, x in given.items()
        if x is not None
    }
    names = _metric_names(spec, tuple((n, str(x.dtype), x.dim()) for n, x in tensors.items()))
    return list(tensors.values()), ",".join(tensors), rows.num_rows, _spec_text(spec), names


def _named(metrics: Tensor, packed: tuple[Any, ...]) -> Metrics:
    return dict(zip(packed[-1].split(","), metrics.unbind(), strict=True))


@torch.compiler.assume_constant_result
def _spec_text(spec: LossSpec) -> str:
    return spec_to_text(spec)


@torch.compiler.assume_constant_result
def _metric_names(spec: LossSpec, given: tuple[tuple[str, str, int], ...]) -> str:
    """Comma-separated names of a loss's metrics, from one token with the same (field, dtype,
    dimensions) in its rows."""
    tensors = {
        name: torch.zeros(
            (1,) * dim, dtype=getattr(torch, dtype.removeprefix("torch.")), device="cpu"
        )
        for name, dtype, dim in given
    }
    view = view_rows(LossRows(num_rows=1, **tensors), None, None, spec, torch.float32)
    zero = torch.zeros(1, dtype=torch.float32, device="cpu")
    return ",".join(SpecObjective(spec, view).finish(zero, zero)[1])
