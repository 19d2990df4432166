"""The autograd nodes of the head: log-probs, and a loss whose gradients are made in forward.

Shapes: `N tokens . D hidden . V vocab`.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .accumulation import assert_is_one
from .backends.base import HeadBackend, Wanted
from .foreseen import Foreseen, RowRule
from .loss_call import LossCall, cut_gradients
from .objective import TokenGradients
from .problem import HeadProblem, accumulation_dtype, as_bias, without_autocast

LOGP_OUTPUTS = ("logp", "entropy", "lse")


class LossFunction(torch.autograd.Function):
    """A scalar loss; backward only scales what forward has made."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        call: LossCall,
        found: dict[str, Any],
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        # hidden, weight and bias are in `call.problem` already: here they are the graph's leaves
        loss, found["metrics"], found["statistics"], gradients = call.run()
        ctx.gradients = gradients  # type: ignore[attr-defined]
        ctx.is_accumulated = call.weight_into is not None  # type: ignore[attr-defined]
        ctx.dtypes = tuple(  # type: ignore[attr-defined]
            None if x is None else x.dtype for x in (hidden, weight, bias)
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "linear_grpo_loss: backward ran a second time, but its gradients are made once, in "
                "forward, and handed over in the first backward; compute the loss again"
            )
        if ctx.is_accumulated:
            assert_is_one(grad_loss)
        made = (gradients.hidden, gradients.weight, gradients.bias)
        # no other reference may live on, so that autograd takes the tensors without a copy
        del gradients
        return (
            None,
            None,
            *(
                None if g is None else scaled(g, grad_loss, dtype)
                for g, dtype in zip(made, ctx.dtypes, strict=True)
            ),
        )


class LogpsFunction(torch.autograd.Function):
    """Log-probs, entropies and lse of each token, differentiable.

    With a frozen weight the unit gradients by hidden are kept and backward scales rows; otherwise
    backward makes the logits again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        problem: HeadProblem,
        backend: HeadBackend,
        outputs: tuple[str, ...],
        with_gradient: tuple[str, ...],
        wanted: Wanted,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = tuple(None if x is None else x.dtype for x in (hidden, weight, bias))
        ctx.outputs = outputs
        ctx.units = None
        if wanted.weight or wanted.bias:
            statistics = backend.statistics(problem)
            ctx.backend, ctx.wanted = backend, wanted
            ctx.device = hidden.device
            # the tensors go through autograd: it notices in-place changes, of targets too, and a
            # sharding engine gathers the very parameter again before backward
            empty = hidden.new_empty(0)
            ctx.problem = replace(problem, hidden=empty, weight=empty, bias=None)
            ctx.compute_dtype = problem.hidden.dtype
            others = read_again(problem.targets, problem.temperature)
            ctx.save_for_backward(hidden, weight, bias, *others)
        else:
            statistics, units = backend.unit_gradients(problem, with_gradient)
            ctx.save_for_backward(*(units[name] for name in with_gradient))
            ctx.units = tuple(outputs.index(name) for name in with_gradient)
        found = {name: getattr(statistics, name) for name in outputs}
        ctx.mark_non_differentiable(*(x for name, x in found.items() if name not in with_gradient))
        return tuple(found.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        head = (None, None, None, None, None)
        if all(g is None for g in grads):
            return *head, None, None, None
        if ctx.units is not None:
            total = None
            for unit, i in zip(ctx.saved_tensors, ctx.units, strict=True):
                if (grad := grads[i]) is not None:
                    part = unit * grad.unsqueeze(1)
                    total = part if total is None else total + part
            assert total is not None
            return *head, total.to(ctx.dtypes[0]), None, None
        known = TokenGradients(**({"logp": None} | dict(zip(ctx.outputs, grads, strict=True))))
        with without_autocast(ctx.device):
            _, made = ctx.backend.gradients(
                _restored(ctx),
                Foreseen(
                    lambda tokens, _: cut_gradients(known, tokens),
                    lambda tokens: RowRule(cut_gradients(known, tokens)),
                ),
                ctx.wanted,
                entropy_gradient=known.entropy is not None,
            )
        return *head, *(
            None if g is None else g.to(dtype)
            for g, dtype in zip((made.hidden, made.weight, made.bias), ctx.dtypes, strict=True)
        )


def _restored(ctx: Any) -> HeadProblem:
    """The problem of forward, its tensors taken from what autograd has saved."""
    hidden, weight, bias, *_ = ctx.saved_tensors
    return replace(
        ctx.problem,
        hidden=hidden.detach().to(ctx.compute_dtype),
        weight=weight.detach().to(ctx.compute_dtype),
        bias=as_bias(bias, accumulation_dtype(ctx.compute_dtype)),
    )


def read_again(targets: Tensor, temperature: float | Tensor) -> tuple[Tensor, ...]:
    """What a backward reads besides hidden states, weight and bias.

    Saved, it makes autograd refuse a backward after an in-place change, as it does for those.
    """
    return (targets, *((temperature,) if isinstance(temperature, Tensor) else ()))


def scaled(gradient: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient * grad_loss in the leaf's dtype, rounded once; the gradient may be overwritten."""
    # reading the number is free on a CPU, and 1 is what `loss.backward()` sends
    if grad_loss.device.type == "cpu" and grad_loss == 1:
        return gradient.to(dtype)
    if gradient.dtype.itemsize < 4:
        # in place, the scale itself would be rounded to 8 bits
        return (gradient.float() * grad_loss).to(dtype)
    if gradient.dtype == dtype:
        return gradient.mul_(grad_loss)
    # one pass over a wide dW on a GPU, which casts as it stores
    return torch.mul(gradient, grad_loss, out=torch.empty_like(gradient, dtype=dtype))
