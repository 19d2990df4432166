"""This head inside TRL's own model forward.

`trl.trainer.utils.add_fused_lm_head` gives a model a forward that finds the hidden states, the
labels, the head and its scaling, and hands them to one autograd function. `HeadSwitch` makes a copy
of that forward which calls `HeadKernel` in its place: everything else stays TRL's code, and no
other model or trainer of the process is touched.

Shapes: `K tokens with a label . D hidden . V vocab`.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..head import GRPOLossOutput, linear_grpo_loss, linear_logps
from ..rows import LossRows
from ..spec import LossSpec

# the names that TRL's forward looks up in its module, and that the copy finds ours under
_FUNCTION = "_ChunkedLogProbFunction"
_COMPACTS = "_use_triton"
_GATHER = "maybe_gather_lm_head_ctx"
_HAS = ("log_probs", "entropy")

Gather = Callable[..., AbstractContextManager[Any]]
KernelOutputs = tuple[Tensor, Tensor | None, None, None, None]


@dataclass(kw_only=True)
class HeadKernel:
    """Takes the place of TRL's `ChunkedLogProbFunction` in one model's forward."""

    gather: Gather
    """TRL's context manager that gathers a ZeRO-3 head"""
    entropy_gradient: bool = True
    """False: nobody differentiates the entropy, which spares a frozen head a GEMM and a tensor"""
    options: dict[str, Any]
    """keywords of `linear_logps`: logits_dtype, chunk_bytes, backend"""
    pending: tuple[LossRows, LossSpec] | None = None
    """the loss that the next call computes; None: the next call computes log-probs"""
    result: GRPOLossOutput | None = None
    """what the last call with a pending loss has found"""

    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = _HAS,
    ) -> KernelOutputs:
        """Log-probs and, where `outputs` has it, entropies (K,) float32, in TRL's order.

        Args:
            hidden: (K, D).
            weight: (V, D), gathered.
            bias: (V,).
            targets: (K,) int64.
            chunk_size: TRL's; ours follows `chunk_bytes`.
        """
        missing = sorted(set(outputs) - set(_HAS))
        if missing:
            raise ValueError(
                f"patch_grpo: the trainer asks its head for {', '.join(missing)}, which this head "
                f"does not compute (it has {', '.join(_HAS)}); leave this trainer unpatched"
            )
        hidden, release = self._prepare_gather(hidden, weight, bias)
        head = {"bias": bias, "temperature": temperature, "softcap": softcap,
                "logit_scale": logit_scale, **self.options}  # fmt: skip
        if self.pending is not None:
            (rows, spec), self.pending = self.pending, None
            # gradients are made here, while the head is gathered: backward needs no weight
            found = linear_grpo_loss(hidden, weight, targets, rows=rows, spec=spec, **head)
            self.result = found
            return _Carry.apply(found.logps, found.loss), found.entropy, None, None, None
        logps, entropy, _ = linear_logps(
            hidden, weight, targets, return_entropy="entropy" in outputs,
            entropy_gradient=self.entropy_gradient, **head,
        )  # fmt: skip
        if release is not None:
            logps, entropy = _GatherBefore.apply(release, logps, entropy)
        return logps, entropy, None, None, None

    def _prepare_gather(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, "_Gathering | None"]:
        """Arrange that a ZeRO-3 head is there again in backward, where its gradient needs it."""
        partitioned = hasattr(weight, "ds_id") and weight.requires_grad
        if not partitioned or self.pending is not None or not torch.is_grad_enabled():
            return hidden, None
        gathering = _Gathering(self.gather, tuple(x for x in (weight, bias) if x is not None))
        if not hidden.requires_grad:
            # without a gradient on its way to hidden, nothing would end the gathering
            hidden = hidden.detach().requires_grad_()
        return _ReleaseAfter.apply(gathering, hidden), gathering


class HeadSwitch:
    """One model's forward with TRL's head or with this one; `on` and `off` switch between them."""

    def __init__(
        self, model: nn.Module, options: dict[str, Any], *, is_reference: bool = False
    ) -> None:
        method: Any = model.__dict__.get("forward")
        theirs = method
        if is_reference:
            # accelerate prepares it when the trainer is made and, under mixed precision, wraps its
            # forward in autocast, which TRL enters around every call by itself
            theirs = model.__dict__.get("_original_forward", method)
        inner = getattr(theirs, "__func__", None)
        if not isinstance(inner, FunctionType) or not {_FUNCTION, _COMPACTS, _GATHER} <= set(
            inner.__code__.co_names
        ):
            raise ValueError(
                f"patch_grpo: the forward of {type(model).__qualname__} is not the one that TRL's "
                "add_fused_lm_head makes; patch the trainer after its construction and before "
                "train(), and only once"
            )
        self._theirs = {name: inner.__globals__[name] for name in (_FUNCTION, _COMPACTS)}
        self._globals = dict(inner.__globals__)
        self.kernel = HeadKernel(gather=inner.__globals__[_GATHER], options=options)
        copy = FunctionType(
            inner.__code__, self._globals, inner.__name__, inner.__defaults__, inner.__closure__
        )
        copy.__kwdefaults__ = inner.__kwdefaults__
        functools.update_wrapper(copy, inner)
        model.forward = MethodType(copy, model)
        self.model = model
        self._method = method

    def on(self) -> None:
        """Use this head, on the tokens with a label only."""
        self._globals |= {_FUNCTION: self.kernel, _COMPACTS: lambda device: True}

    def off(self) -> None:
        """Use TRL's head again, also below wrappers that were put around forward since."""
        self._globals |= self._theirs
        forward = self.model.__dict__.get("forward")
        if isinstance(forward, MethodType) and forward.__func__.__globals__ is self._globals:
            self.model.forward = self._method


class _Gathering:
    """A ZeRO-3 head, gathered from the first gradient of its log-probs to that of hidden."""

    def __init__(self, gather: Gather, parameters: tuple[Tensor, ...]) -> None:
        self._gather = gather
        self._parameters = parameters
        self._open: AbstractContextManager[Any] | None = None

    def begin(self) -> None:
        self._open = self._gather(*self._parameters)
        self._open.__enter__()

    def end(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


class _GatherBefore(torch.autograd.Function):
    """Identity on the head's outputs; its backward runs before the head's."""

    @staticmethod
    def forward(
        ctx: Any, gathering: _Gathering, logps: Tensor, entropy: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.gathering = gathering
        return logps.view_as(logps), None if entropy is None else entropy.view_as(entropy)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        ctx.gathering.begin()
        return None, *grads


class _ReleaseAfter(torch.autograd.Function):
    """Identity on the hidden states; its backward runs after the head's."""

    @staticmethod
    def forward(ctx: Any, gathering: _Gathering, hidden: Tensor) -> Tensor:
        ctx.gathering = gathering
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        ctx.gathering.end()
        return None, grad


class _Carry(torch.autograd.Function):
    """The log-probs, with the loss's graph behind them.

    A loss that left the model by another way than its outputs would pass by the hooks with which
    FSDP and DeepSpeed prepare backward. `read_loss` takes it out again.
    """

    @staticmethod
    def forward(ctx: Any, logps: Tensor, loss: Tensor) -> Tensor:
        return logps.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad.sum()


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carried: Tensor, mask: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.dtype = carried.dtype
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        # at one kept token, so that the sum of `_Carry` is this very number
        first = mask.reshape(-1).long().argmax()
        spread = grad.new_zeros(mask.numel(), dtype=ctx.dtype)
        return spread.index_fill(0, first, 1.0).mul(grad).view(mask.shape), None, None


def read_loss(carried: Tensor, mask: Tensor, found: GRPOLossOutput) -> Tensor:
    """The loss of `found` with the graph that came with the model's log-probs.

    Args:
        carried: (B, L) log-probs of the model's outputs.
        mask: (B, L) the K tokens that the head has seen.
        found: the kernel's result.
    """
    return _Read.apply(carried, mask, found.loss.detach())
