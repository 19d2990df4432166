"""Our own head as a provider: one for every backend that serves the device.

With bf16 weights there is a second form that rounds logits to bf16, as every peer here does; the
default keeps them in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from polaris_kernels import available_backends, grpo_loss, linear_grpo_loss, linear_logps
from polaris_kernels.backends import cuda_library, native_library

from .head_cases import SPEC, HeadCase, HeadInputs
from .head_exact import Outputs
from .head_peers import Missing
from .measure import Call

OURS = "polaris"
_REMEDY = {"native": native_library.REBUILD, "cuda": cuda_library.REBUILD}


@dataclass(frozen=True)
class _Form:
    """A backend and how it rounds logits."""

    backend: str
    logits_dtype: str = "fp32"

    @property
    def name(self) -> str:
        rounds = ", bf16 logits" if self.logits_dtype == "bf16" else ""
        return f"{OURS} ({self.backend}{rounds})"

    def __call__(self, inputs: HeadInputs) -> Call:
        if self.backend not in available_backends():
            raise Missing(_REMEDY.get(self.backend, "Triton cannot be imported"))
        if inputs.case.task == "logits":
            return _loss_from_logits(inputs, self.backend)
        options = {"backend": self.backend, "logits_dtype": self.logits_dtype}
        form = {"logps": _statistics, "logp_op": _log_probs}.get(inputs.case.task, _fused_loss)
        return form(inputs, options)


def providers(case: HeadCase, device: str) -> dict[str, Callable[[HeadInputs], Call]]:
    """Builders by name."""
    fast = ("cuda", "triton") if device == "cuda" else ("native",)
    forms = [_Form("torch"), *map(_Form, fast)]
    if case.dtype == "bf16" and case.task != "logits":
        forms += [_Form(name, "bf16") for name in fast]
    if device == "cuda" and case.task == "sparse_loss":
        # drops the rows whose coefficient is 0; elsewhere it is the triton backend
        forms.append(_Form("triton_compact"))
    return {form.name: form for form in forms}


def _fused_loss(inputs: HeadInputs, options: dict[str, Any]) -> Call:
    """`linear_grpo_loss`, forward and backward."""
    hidden, weight = inputs.hidden.detach(), inputs.weight.detach()
    leaves = [hidden.requires_grad_()]
    if inputs.case.task != "frozen":
        leaves.append(weight.requires_grad_())
    rows = inputs.rows()

    def run() -> Outputs:
        out = linear_grpo_loss(hidden, weight, inputs.targets, rows=rows, spec=SPEC, **options)
        grads = torch.autograd.grad(out.loss, leaves)
        return Outputs(
            loss=out.loss.detach(),
            grad_hidden=grads[0],
            grad_weight=grads[1] if len(grads) > 1 else None,
        )

    return Call(run)


def _statistics(inputs: HeadInputs, options: dict[str, Any]) -> Call:
    """`linear_logps` with the entropy, no gradient."""
    hidden, weight = inputs.hidden, inputs.weight

    def run() -> Outputs:
        with torch.no_grad():
            found = linear_logps(hidden, weight, inputs.targets, return_entropy=True, **options)
        return Outputs(logps=found.logps, entropy=found.entropy)

    return Call(run)


def _log_probs(inputs: HeadInputs, options: dict[str, Any]) -> Call:
    """`linear_logps`, forward and backward."""
    leaves = tuple(x.detach().requires_grad_() for x in (inputs.hidden, inputs.weight))

    def run() -> Outputs:
        logps = linear_logps(*leaves, inputs.targets, **options).logps
        loss = (logps * inputs.upstream).sum()
        grads = torch.autograd.grad(loss, leaves)
        return Outputs(loss.detach(), logps.detach(), None, *grads)

    return Call(run)


def _loss_from_logits(inputs: HeadInputs, backend: str) -> Call:
    """`grpo_loss`; the gradient is written over the logits."""
    working = inputs.logits.clone().requires_grad_()
    targets, rows = inputs.padded(inputs.targets), inputs.rows()

    def run() -> Outputs:
        out = grpo_loss(working, targets, rows=rows, spec=SPEC, inplace=True, backend=backend)
        (gradient,) = torch.autograd.grad(out.loss, working)
        return Outputs(loss=out.loss.detach(), grad_logits=gradient)

    return Call(run, prepare=lambda: working.data.copy_(inputs.logits))
