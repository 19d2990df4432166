"""Both models' logits, chunk by chunk, to the exact KL and its gradients.

Shapes: `N tokens . C chunk . D hidden . V vocab`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backends import gemm
from .backends.base import HeadGradients, Wanted
from .backends.chunks import even_slices
from .backends.row_pass import block_rows, row_blocks, scale_logits_
from .backends.workspace import borrowed
from .problem import HeadProblem, accumulation_dtype, compute_dtype_of, make_problem


class Head(NamedTuple):
    """One model's side of the problem."""

    hidden: Tensor
    """(N, D)"""
    weight: Tensor
    """(V, D)"""
    bias: Tensor | None
    """(V,)"""


class HeadPair(NamedTuple):
    """One softmax problem for each model; the targets of both are unused."""

    policy: HeadProblem
    reference: HeadProblem

    @classmethod
    def make(cls, policy: Head, reference: Head, *, caller: str, **options: Any) -> "HeadPair":
        """Validate and cast both; `options` are `make_problem`'s, the same for both models."""
        compute, ref_compute = (compute_dtype_of(x.hidden, x.weight) for x in (policy, reference))
        if accumulation_dtype(compute) != accumulation_dtype(ref_compute):
            # both models' logits meet in one difference
            ref_compute = accumulation_dtype(compute)
        device, num_tokens = policy.hidden.device, policy.hidden.shape[0]
        unused = torch.zeros(num_tokens, dtype=torch.int64, device=device)
        ours = make_problem(
            policy.hidden,
            policy.weight,
            unused,
            bias=policy.bias,
            compute_dtype=compute,
            caller=caller,
            **options,
        )
        check_reference(policy.hidden, reference.hidden, caller)
        if reference.weight.shape[:1] != policy.weight.shape[:1]:
            raise ValueError(
                f"{caller}: ref_weight must have the {policy.weight.shape[0]} rows of weight, one "
                f"a token id, got {tuple(reference.weight.shape)}; both models need one vocabulary"
            )
        theirs = make_problem(
            reference.hidden,
            reference.weight,
            unused,
            bias=reference.bias,
            compute_dtype=ref_compute,
            caller=f"{caller} (reference)",
            **options,
        )
        return cls(ours, theirs)

    def chunks(self) -> list[slice]:
        """Token slices for which both models' logits fit the byte budget."""
        problem = self.policy
        on_cpu = problem.hidden.device.type == "cpu"
        # a GPU's half GEMMs read the gradient in the weight's dtype: one more, narrower buffer
        narrow = 0 if on_cpu else problem.weight.element_size()
        row_bytes = problem.vocab_size * (2 * problem.acc_dtype.itemsize + narrow)
        return even_slices(problem.num_tokens, max(1, problem.chunk_bytes // max(row_bytes, 1)))


def check_reference(hidden: Tensor, ref_hidden: Tensor, caller: str) -> None:
    """ValueError when the (N, D) states of the two models are not of the same tokens."""
    if ref_hidden.shape[0] != hidden.shape[0]:
        raise ValueError(
            f"{caller}: ref_hidden must have one row for each of the {hidden.shape[0]} of hidden, "
            f"got {ref_hidden.shape[0]}; run the reference over the same tokens"
        )
    if ref_hidden.device != hidden.device:
        raise ValueError(
            f"{caller}: ref_hidden is on {ref_hidden.device} and hidden on {hidden.device}; "
            "move them to one device"
        )


def kl_pass(
    pair: HeadPair, coefficients: Tensor | None, wanted: Wanted
) -> tuple[Tensor, HeadGradients]:
    """(N,) KL, and the wanted gradients of sum coefficients * KL; (N,) coefficients."""
    problem = pair.policy
    kl = problem.hidden.new_empty(problem.num_tokens, dtype=problem.acc_dtype)
    sums = _Gradients(problem, wanted)
    for tokens in pair.chunks():
        C, V, device = tokens.stop - tokens.start, problem.vocab_size, problem.hidden.device
        height = block_rows(C, V, device)
        # the softcap's slope needs a place while the products are summed
        shapes = ((C, V), (C, V), (height, V), (height if problem.softcap else 0, V))
        with borrowed(shapes, kl) as (z, r, scratch, slope):
            for logits, model in ((z, problem), (r, pair.reference)):
                gemm.logits_into(model.hidden[tokens], model.weight, logits)
            for block in row_blocks(C, V, device):
                at = slice(tokens.start + block.start, tokens.start + block.stop)
                for logits, model in ((z, problem), (r, pair.reference)):
                    scale_logits_(logits[block], model, at, slice(None), prescaled=False)
                temperature = problem.temperature_of(at)
                factor = inverse = None
                if coefficients is not None and wanted.any:
                    factor = coefficients[at, None] * (problem.logit_scale / temperature)
                if problem.softcap is not None:
                    inverse = temperature / problem.softcap
                rows = block.stop - block.start
                kl[at] = _kl_block_(
                    z[block], r[block], scratch[:rows], slope[:rows], factor, inverse
                )
            if coefficients is not None:
                sums.add(tokens, r)
    return kl, sums.result()


def _kl_block_(
    z: Tensor,
    r: Tensor,
    scratch: Tensor,
    slope: Tensor,
    factor: Tensor | None,
    cap_inverse: float | Tensor | None,
) -> Tensor:
    """(rows,) KL of softmax(z) to softmax(r); with `factor` r becomes factor * d KL / d raw z.

    With z', r' the logits less their row's maximum, S the sums of their exponentials and
    u = sum exp(z') (z' - r') / S_z: KL = u + log(S_r / S_z), d KL / d z_j = p_j (z'_j - r'_j - u).

    Args:
        z, r: (rows, V), overwritten.
        scratch, slope: (rows, V), overwritten; `slope` is used with a softcap only.
        factor: (rows, 1).
        cap_inverse: temperature / softcap, a number or (rows, 1); None: no softcap.
    """
    if cap_inverse is not None:
        # tanh of the capped logit is z * temperature / softcap; its slope is 1 - tanh^2
        torch.mul(z, cap_inverse, out=slope).square_().neg_().add_(1)
    z.sub_(z.amax(1, keepdim=True))
    r.sub_(r.amax(1, keepdim=True))
    sum_r = torch.exp(r, out=scratch).sum(1, keepdim=True)
    torch.sub(z, r, out=r)
    sum_z = z.exp_().sum(1, keepdim=True)
    drift = torch.mul(z, r, out=scratch).sum(1, keepdim=True) / sum_z
    # the quotient first: close models have a log near 0, with all its digits
    kl = drift + (sum_r / sum_z).log()
    if factor is not None:
        r.sub_(drift).mul_(z).mul_(factor / sum_z)
        if cap_inverse is not None:
            r.mul_(slope)
    return kl.squeeze(1)


class _Gradients:
    """dX written chunk by chunk, dW and db summed over chunks in the accumulation dtype."""

    def __init__(self, problem: HeadProblem, wanted: Wanted) -> None:
        self.problem, self.wanted = problem, wanted
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.hidden: Tensor | None = None
        if wanted.hidden:
            self.hidden = problem.hidden.new_empty(
                problem.hidden.shape, dtype=problem.hidden_grad_dtype
            )

    def add(self, tokens: slice, dz: Tensor) -> None:
        """Take in one chunk's d loss / d raw logits (C, V)."""
        problem = self.problem
        if self.hidden is not None:
            self.hidden[tokens].copy_(gemm.hidden_gradient(dz, problem.weight))
        if self.wanted.weight:
            self.weight = gemm.add_weight_gradient(self.weight, dz, problem.hidden[tokens])
        if self.wanted.bias:
            total = dz.sum(0)
            self.bias = total if self.bias is None else self.bias.add_(total)

    def result(self) -> HeadGradients:
        """The sums; zero where there was no chunk."""
        problem = self.problem
        like = problem.hidden.new_empty(0, dtype=problem.acc_dtype)
        if self.wanted.weight and self.weight is None:
            self.weight = like.new_zeros(problem.weight.shape)
        if self.wanted.bias and self.bias is None:
            self.bias = like.new_zeros(problem.vocab_size)
        return HeadGradients(self.hidden, self.weight, self.bias)
