"""The float64 values that every provider is held to before it is timed.

Losses, log-probs and entropies are exact for all tokens; gradients for a sample of tokens and of
vocabulary rows, so that the reference of a 16,384 x 248,320 problem takes seconds.

Shapes: `N tokens . D hidden . V vocab . S sampled tokens . U sampled vocabulary rows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from polaris_kernels import reference

from .head_cases import SPEC, HeadCase, HeadInputs, old_logps_of, random_inputs

_SAMPLE = 48
# bytes of float64 logits at a time
_CHUNK_BYTES = 2**28
# allowed relative error of any result, by dtype of the inputs: some peers add up gradients in bf16,
# which costs 2e-2 here. Wrong maths (a missed clip, a wrong scale) is off by far more.
TOLERANCE = {"bf16": 6e-2, "fp32": 1e-4}


@dataclass(frozen=True)
class Outputs:
    """What one call returned; None where its task has no such result."""

    loss: Tensor | None = None
    """scalar"""
    logps: Tensor | None = None
    """(N,)"""
    entropy: Tensor | None = None
    """(N,)"""
    grad_hidden: Tensor | None = None
    """(N, D)"""
    grad_weight: Tensor | None = None
    """(V, D)"""
    grad_logits: Tensor | None = None
    """(R, L + 1, V)"""


@dataclass(frozen=True)
class Exact:
    """Float64 results, gradients at the sampled places."""

    values: Outputs
    tokens: Tensor
    """(S,) int64"""
    columns: Tensor
    """(U,) int64"""
    loss_scale: Tensor | None = None
    """scalar: the size of the loss's terms, whose signed sum nearly cancels"""

    def errors(self, found: Outputs) -> dict[str, float]:
        """||found - exact|| / ||exact|| of each result that `found` has; a loss's error is relative
        to the size of its terms."""
        errors = {}
        for field in fields(Outputs):
            value, exact = getattr(found, field.name), getattr(self.values, field.name)
            if value is None:
                continue
            if exact is None:
                raise ValueError(f"{field.name} is no result of this task")
            value = self._sampled(field.name, value.detach()).double()
            scale = exact.norm() if field.name != "loss" else self.loss_scale
            errors[field.name] = float((value - exact).norm() / scale)
        return errors

    def _sampled(self, name: str, value: Tensor) -> Tensor:
        if name == "grad_weight":
            return value[self.columns]
        if name == "grad_hidden":
            return value[self.tokens]
        if name == "grad_logits":
            return value[:, :-1].flatten(0, 1)[self.tokens]
        return value


def inputs_and_exact(case: HeadCase, device: torch.device) -> tuple[HeadInputs, Exact]:
    """The inputs of `case` and the exact results on them."""
    inputs = random_inputs(case, device)
    with torch.no_grad(), _full_precision():
        lse, logps, entropy = _statistics(inputs)
        inputs = replace(inputs, old_logps=old_logps_of(logps))
        tokens, columns = _samples(inputs)
        if case.task == "logps":
            return inputs, Exact(Outputs(logps=logps, entropy=entropy), tokens, columns)
        loss, size, coefficient = _objective(inputs, logps)
        gradients = _gradients(inputs, lse, coefficient, tokens, columns)
    values = replace(gradients, loss=loss, logps=logps if case.task == "logp_op" else None)
    return inputs, Exact(values, tokens, columns, loss_scale=size)


def _statistics(inputs: HeadInputs) -> tuple[Tensor, Tensor, Tensor]:
    """lse, log-prob of the target and entropy, each (N,) float64.

    The logits of the sums come from an fp32 GEMM: their independent errors of 1e-6 leave nothing in
    a sum over V of them. The target's own logit is a float64 product.
    """
    N, V = inputs.case.num_tokens, inputs.case.vocab_size
    lse, target, entropy = (inputs.targets.new_empty(N, dtype=torch.float64) for _ in range(3))
    height = max(1, _CHUNK_BYTES // (8 * V))
    weight = inputs.weight.float()
    for start in range(0, N, height):
        chunk = slice(start, min(start + height, N))
        wanted = inputs.targets[chunk]
        if _from_logits(inputs):
            z = _logits(inputs, chunk).double()
            target[chunk] = z.gather(1, wanted[:, None]).squeeze(1)
        else:
            hidden = inputs.hidden[chunk]
            z = (hidden.float() @ weight.t()).double()
            target[chunk] = (hidden.double() * inputs.weight[wanted].double()).sum(1)
        lse[chunk] = z.logsumexp(1)
        p = (z - lse[chunk, None]).exp_()
        entropy[chunk] = lse[chunk] - (p * z).sum(1)
    return lse, target - lse, entropy


def _objective(inputs: HeadInputs, logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the size of its terms, and d loss / d log-prob (N,)."""
    if inputs.case.task == "logp_op":
        upstream = inputs.upstream.double()
        terms = logps * upstream
        return terms.sum(), terms.abs().sum(), upstream
    rows = inputs.rows().to("cpu")
    with torch.enable_grad():
        leaf = logps.cpu().requires_grad_()
        loss = reference.policy_loss(leaf, torch.zeros_like(leaf), rows, SPEC)
        (coefficient,) = torch.autograd.grad(loss, leaf)
    # |A| is what a term is at ratio 1
    size = (inputs.advantages[inputs.row_of_token].abs() * inputs.mask).sum() / inputs.denominator
    return loss.detach().to(logps.device), size.double(), coefficient.to(logps.device)


def _gradients(
    inputs: HeadInputs, lse: Tensor, coefficient: Tensor, tokens: Tensor, columns: Tensor
) -> Outputs:
    """d loss / d inputs from dz = coefficient ([v = target] - p)."""
    if _from_logits(inputs):
        z = _logits(inputs, tokens).double()
        return Outputs(grad_logits=_dz(inputs, z, lse, coefficient, tokens))
    hidden = inputs.hidden.double()
    weight = inputs.weight.double()
    z = hidden[tokens] @ weight.t()
    grad_hidden = _dz(inputs, z, lse, coefficient, tokens) @ weight
    z = hidden @ weight[columns].t()
    is_target = inputs.targets[:, None] == columns
    dz = coefficient[:, None] * (is_target.double() - (z - lse[:, None]).exp())
    frozen = inputs.case.task == "frozen"
    return Outputs(grad_hidden=grad_hidden, grad_weight=None if frozen else dz.t() @ hidden)


def _dz(inputs: HeadInputs, z: Tensor, lse: Tensor, coefficient: Tensor, tokens: Tensor) -> Tensor:
    p = (z - lse[tokens, None]).exp_()
    p.scatter_add_(1, inputs.targets[tokens, None], -torch.ones_like(p[:, :1]))
    return p.mul_(-coefficient[tokens, None])


def _samples(inputs: HeadInputs) -> tuple[Tensor, Tensor]:
    """Tokens (mostly ones with loss) and vocabulary rows (mostly targets of those)."""
    device = inputs.device
    active = inputs.mask & (inputs.advantages[inputs.row_of_token] != 0)
    tokens = []
    for some in (active, ~active):
        place = some.nonzero().squeeze(1)
        if place.numel():
            count = min(_SAMPLE, place.numel())
            tokens.append(place[torch.linspace(0, place.numel() - 1, count, device=device).long()])
    spread = torch.linspace(0, inputs.case.vocab_size - 1, _SAMPLE, device=device).long()
    columns = torch.cat([inputs.targets[tokens[0]], spread]).unique()
    return torch.cat(tokens), columns


def _from_logits(inputs: HeadInputs) -> bool:
    return inputs.case.task == "logits"


def _logits(inputs: HeadInputs, tokens: slice | Tensor) -> Tensor:
    """(tokens, V) of the (R, L + 1, V) logits."""
    per_row = inputs.case.num_tokens // inputs.case.num_rows
    token = torch.arange(inputs.case.num_tokens, device=inputs.device)[tokens]
    return inputs.logits[token // per_row, token % per_row]


@contextmanager
def _full_precision() -> Iterator[None]:
    """fp32 GEMMs in fp32, whatever the process has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
