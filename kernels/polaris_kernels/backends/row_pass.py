"""The row pass in torch: raw logits -> statistics -> d loss / d raw logits, in place.

With z' = z - max(z), E = exp(z'), S = sum E, the gradient of one row is
    dz_j = E_j (alpha + beta z'_j) + gamma [j = target]
    alpha = (-g_logp + g_lse - g_H (H - log S)) / S,   beta = -g_H / S,   gamma = g_logp
and d loss / d s = dz times the derivative of the scaling (logit_scale / temperature, softcap).

Shapes: `C tokens of a chunk . V vocab (or a tile of it)`. Blocks of rows that fit the cache go
through all steps together: the steps are bound by memory, not by arithmetic.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..objective import TokenGradients
from ..problem import HeadProblem

# elements in a block: a few MB, so that the second and later steps hit the cache on a CPU, and
# enough of them that the launch of an op costs nothing
BLOCK_ELEMENTS_CPU = 2**19
BLOCK_ELEMENTS_GPU = 2**26

# a logit of -inf bans its id. Its z' is lifted to here, where the exponential is 0 in every type
# and a product with it is 0 too, and not nan
_LOWEST = -1e4
# the maximum of nothing but such logits is lifted to here: z - maximum must not be nan
_FLOOR = -1e30


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of softmax rows, (C,) each."""

    maximum: Tensor
    sum_exp: Tensor
    """sum of exp(z')"""
    sum_z_exp: Tensor
    """sum of z' exp(z')"""
    target: Tensor
    """z' of the target"""

    @classmethod
    def empty(cls, num_rows: int, like: Tensor) -> "RowStatistics":
        """Unwritten statistics."""
        return cls(*like.new_empty(4, num_rows).unbind())

    def __getitem__(self, rows: slice) -> "RowStatistics":
        return RowStatistics(
            self.maximum[rows], self.sum_exp[rows], self.sum_z_exp[rows], self.target[rows]
        )


def shifted_targets(rows: RowStatistics) -> RowStatistics:
    """Statistics that hold the target's z itself -> its z relative to the maximum."""
    return replace(rows, target=rows.target - rows.maximum)


def row_blocks(num_rows: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices over rows whose (rows, width) block stays in the cache."""
    elements = BLOCK_ELEMENTS_CPU if device.type == "cpu" else BLOCK_ELEMENTS_GPU
    # a reduction over fewer rows than threads leaves threads idle
    rows = max(torch.get_num_threads() if device.type == "cpu" else 1, elements // max(width, 1))
    return (slice(i, min(i + rows, num_rows)) for i in range(0, num_rows, rows))


def block_rows(num_rows: int, width: int, device: torch.device) -> int:
    """Rows of the largest block of `row_blocks`."""
    first = next(row_blocks(num_rows, width, device), slice(0, 0))
    return first.stop - first.start


def scale_logits_(
    z: Tensor, problem: HeadProblem, tokens: slice, columns: slice, *, prescaled: bool
) -> None:
    """Raw logits -> z of the problem, in place. z: (rows, columns) accumulation dtype.

    `prescaled`: the GEMM has already applied logit_scale / temperature.
    """
    if problem.bias is not None:
        z.add_(problem.bias[columns])
    if problem.rounds_logits:
        z.copy_(z.to(torch.bfloat16))
    if prescaled:
        return
    temperature = problem.temperature_of(tokens)
    if problem.softcap is not None:
        z.mul_(problem.logit_scale / problem.softcap).tanh_().mul_(problem.softcap / temperature)
    elif isinstance(temperature, Tensor) or temperature != problem.logit_scale:
        z.mul_(problem.logit_scale / temperature)


def reduce_block(
    z: Tensor,
    scratch: Tensor,
    targets: Tensor,
    out: RowStatistics,
    *,
    keep: str,
    inside: Tensor | None = None,
) -> None:
    """Statistics of one block into `out`; z becomes exp(z') (`keep="exp"`) or z' ("shifted").

    Logits may be -inf: see `lift_`.

    Args:
        z: (rows, width) logits.
        scratch: (rows, width), overwritten.
        targets: (rows,) column of each row's target.
        inside: (rows,) bool, False where the target is in another tile; its slot stays as it was.
    """
    torch.amax(z, 1, out=out.maximum)
    out.maximum.clamp_(min=_FLOOR)
    column = out.maximum.unsqueeze(1)
    shifted, exponential = (z, scratch) if keep == "shifted" else (scratch, z)
    torch.sub(z, column, out=shifted)
    target = shifted.gather(1, targets.unsqueeze(1)).squeeze(1)
    out.target.copy_(target if inside is None else torch.where(inside, target, out.target))
    lift_(shifted)
    torch.exp(shifted, out=exponential)
    torch.sum(exponential, 1, out=out.sum_exp)
    # the scratch is free to take the product, except that "shifted" still needs z'
    scratch.mul_(z)
    torch.sum(scratch, 1, out=out.sum_z_exp)


def lift_(shifted: Tensor) -> Tensor:
    """z' with -inf lifted to a number whose exponential is 0; nan stays."""
    return shifted.clamp_(min=_LOWEST)


@dataclass(frozen=True)
class RowCoefficients:
    """alpha, beta, gamma of the row gradient, (C, 1) each; beta None for no entropy part."""

    alpha: Tensor
    beta: Tensor | None
    gamma: Tensor | None

    def __getitem__(self, rows: slice) -> "RowCoefficients":
        return RowCoefficients(
            self.alpha[rows],
            None if self.beta is None else self.beta[rows],
            None if self.gamma is None else self.gamma[rows],
        )

    def take(self, rows: Tensor) -> "RowCoefficients":
        """The coefficients of the rows listed in `rows` (int64)."""
        return RowCoefficients(
            self.alpha[rows],
            None if self.beta is None else self.beta[rows],
            None if self.gamma is None else self.gamma[rows],
        )


def row_coefficients(
    gradients: TokenGradients, rows: RowStatistics, entropy: Tensor, factor: float | Tensor
) -> RowCoefficients:
    """alpha, beta, gamma from per-token gradients; `factor` (number or (C, 1)) multiplies all."""
    alpha = torch.zeros_like(entropy)
    if gradients.logp is not None:
        alpha = alpha - gradients.logp
    if gradients.lse is not None:
        alpha = alpha + gradients.lse
    beta = None
    if gradients.entropy is not None:
        alpha = alpha - gradients.entropy * (entropy - rows.sum_exp.log())
        beta = (-gradients.entropy / rows.sum_exp).unsqueeze(1) * factor
    gamma = None if gradients.logp is None else gradients.logp.unsqueeze(1) * factor
    return RowCoefficients((alpha / rows.sum_exp).unsqueeze(1) * factor, beta, gamma)


def gradient_block_(
    z: Tensor,
    scratch: Tensor,
    targets: Tensor,
    coefficients: RowCoefficients,
    *,
    kept: str,
    cap_slope: tuple[Tensor, Tensor] | None,
) -> None:
    """One block in place: what `reduce_block` kept -> d loss / d raw logits.

    Args:
        z: (rows, V), exp(z') or z' by `kept`.
        targets: (rows, 1).
        cap_slope: with a softcap, row maximum and temperature / softcap, (rows, 1) each.
    """
    alpha, beta, gamma = coefficients.alpha, coefficients.beta, coefficients.gamma
    if kept == "exp":
        z.mul_(alpha)
        _add_at_targets(z, targets, gamma)
        return
    torch.exp(z, out=scratch)
    if cap_slope is None:
        if beta is None:
            torch.mul(scratch, alpha, out=z)
        else:
            z.mul_(beta).add_(alpha).mul_(scratch)
        _add_at_targets(z, targets, gamma)
        return
    scratch.mul_(alpha if beta is None else z * beta + alpha)
    _add_at_targets(scratch, targets, gamma)
    maximum, inverse = cap_slope
    # tanh of the capped logit is z * temperature / softcap; its slope is 1 - tanh^2
    z.add_(maximum).mul_(inverse).square_().neg_().add_(1).mul_(scratch)


def _add_at_targets(z: Tensor, targets: Tensor, gamma: Tensor | None) -> None:
    if gamma is not None:
        z.scatter_add_(1, targets, gamma)
