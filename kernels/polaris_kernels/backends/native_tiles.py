"""Gradients a vocabulary tile at a time: the native backend's form for narrow heads.

With few hidden units a logit costs less to make again than to fetch from memory. So the statistics
of all tokens come first and keep nothing. Then each tile of the vocabulary goes through: its
logits again -> their gradient, in place -> GEMM into dX -> GEMM that finishes the tile's rows of
dW. That is a fourth GEMM, but the logits never leave the cache, every row of dW is written once, in
its own dtype, and neither an (N, V) nor a wide (V, D) tensor exists.

Shapes: `N tokens . K tokens with a coefficient . D hidden . V vocab . W columns of a tile`.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..problem import HeadProblem
from .base import HeadGradients, Wanted
from .native_gemm import Gemms, weight_gradient_dtype
from .row_pass import RowCoefficients
from .workspace import borrowed

# bytes of a row of the weight up to which the fourth GEMM costs about what it saves: trained heads
# take .98 to 1.13 of the chunked form's time (Zen 5)
_NARROW_BYTES = 256
# logits of all tokens: below this they stay in the cache as they are
_LEAST_BYTES = 64 * 2**20
# of a tile of logits: they stay in L3 with what is made of them
_TILE_BYTES = 16 * 2**20
# columns of a tile: fewer would leave the GEMMs too little, more of them save nothing
_LEAST_COLUMNS, _MOST_COLUMNS = 512, 8192


def takes_tiles(gemms: Gemms) -> bool:
    """True for a narrow head with many logits.

    Budgets below those many logits are for somebody who wants to cut tokens.
    """
    problem, plan = gemms.problem, gemms.plan
    if plan.gradient == torch.bfloat16 and not gemms.multiply.widens_bf16():
        # each tile's part of dX would be rounded
        return False
    row_bytes = problem.weight.shape[1] * plan.gradient.itemsize
    logits_bytes = problem.num_tokens * problem.vocab_size * plan.logits.itemsize
    least_tile = problem.num_tokens * _LEAST_COLUMNS * plan.logits.itemsize
    return (
        row_bytes <= _NARROW_BYTES
        and logits_bytes > _LEAST_BYTES
        and problem.chunk_bytes >= max(_LEAST_BYTES, least_tile)
    )


def rows_of_statistics(gemms: Gemms, columns: int) -> int:
    """Tokens whose tile of that many columns has the size of the others."""
    return max(1, _TILE_BYTES // (columns * gemms.plan.logits.itemsize))


def tile_bytes(gemms: Gemms) -> tuple[int, int]:
    """Of a tile of logits, and of its rows of dW before they are rounded (0: they are not)."""
    problem, dtype = gemms.problem, gemms.plan.logits
    width = _columns(problem.num_tokens, problem.vocab_size, dtype)
    logits = problem.num_tokens * width * dtype.itemsize
    acc = problem.acc_dtype
    narrow = weight_gradient_dtype(problem)
    rounds = narrow != acc and not _rounds_itself(gemms, narrow)
    return logits, width * problem.weight.shape[1] * acc.itemsize if rounds else 0


def gradients_by_tiles(
    gemms: Gemms,
    maximum: Tensor,
    factors: RowCoefficients,
    kept: Tensor | None,
    wanted: Wanted,
    weight_into: Tensor | None,
) -> HeadGradients:
    """All gradients, from the statistics and coefficients of all tokens.

    Args:
        maximum: (N,) largest z of each token; factors (N, 1) each.
        kept: (K,) int64, the only tokens with a coefficient; None: all.
        weight_into: as in `HeadBackend.gradients`.
    """
    problem = gemms.problem
    if kept is not None:
        gemms = Gemms(gemms.library, _only(problem, kept))
        maximum, factors = maximum[kept], factors.take(kept)
    sums = _Tiles(gemms, wanted, weight_into)
    if maximum.numel():
        sums.run(maximum, factors)
    hidden = sums.hidden
    if hidden is not None:
        hidden = hidden.to(problem.hidden_grad_dtype)
        if kept is not None:
            hidden = hidden.new_zeros(problem.hidden.shape).index_copy_(0, kept, hidden)
    return HeadGradients(hidden, None if weight_into is not None else sums.weight, sums.bias)


class _Tiles:
    """The gradients of one problem while its tiles go by."""

    def __init__(self, gemms: Gemms, wanted: Wanted, weight_into: Tensor | None) -> None:
        problem = self.problem = gemms.problem
        self.gemms = gemms
        acc = problem.acc_dtype
        V, D = problem.weight.shape
        device = problem.weight.device
        zeros = partial(torch.zeros, dtype=acc, device=device)
        self.hidden = zeros(problem.hidden.shape) if wanted.hidden else None
        self.bias = zeros(V) if wanted.bias else None
        self.adds = weight_into is not None
        self.weight = weight_into
        if wanted.weight and weight_into is None:
            self.weight = gemms.library.empty((V, D), weight_gradient_dtype(problem))
            if not problem.num_tokens:
                # no tile writes it
                self.weight.zero_()

    def run(self, maximum: Tensor, factors: RowCoefficients) -> None:
        """Every tile. maximum (K,), factors (K, 1)."""
        gemms, problem, plan = self.gemms, self.problem, self.gemms.plan
        K, V = problem.num_tokens, problem.vocab_size
        width = _columns(K, V, plan.logits)
        tokens = slice(0, K)
        operand = gemms.logits_operand(tokens)
        hidden = problem.hidden.to(plan.gradient)
        like = hidden.new_empty(0, dtype=plan.logits)
        with borrowed(((K, width),), like) as (buffer,):
            for first in range(0, V, width):
                columns = slice(first, min(first + width, V))
                W = columns.stop - first
                z = buffer.view(-1)[: K * W].view(K, W)
                gemms.logits_into(operand, columns, z)
                dz = z if plan.gradient == plan.logits else z.view(plan.gradient)[:, :W]
                gemms.library.gradient(
                    problem, z, tokens, maximum, factors, out=dz, columns=columns
                )
                self._add(dz, hidden, columns)

    def _add(self, dz: Tensor, hidden: Tensor, columns: slice) -> None:
        """Take in the gradient dz (K, W) of one tile."""
        if self.hidden is not None:
            self.gemms.add_hidden_gradient(dz, columns, self.hidden)
        if self.bias is not None:
            torch.sum(dz, 0, dtype=self.bias.dtype, out=self.bias[columns])
        if self.weight is not None:
            self._add_rows(self.weight[columns], dz.t(), hidden)

    def _add_rows(self, rows: Tensor, dz: Tensor, hidden: Tensor) -> None:
        """rows (W, D) of dW = or += dz (W, K) @ hidden (K, D), rounded once."""
        acc, multiply = self.problem.acc_dtype, self.gemms.multiply
        if rows.dtype == acc or _rounds_itself(self.gemms, rows.dtype):
            multiply.into(rows, dz, hidden, add=self.adds)
            return
        with borrowed(((rows.shape[0], rows.shape[1]),), rows.new_empty(0, dtype=acc)) as (part,):
            multiply.into(part, dz, hidden)
            if self.adds:
                rows.add_(part)
            else:
                rows.copy_(part)


def _columns(num_tokens: int, vocab_size: int, dtype: torch.dtype) -> int:
    fit = _TILE_BYTES // (num_tokens * dtype.itemsize) // _LEAST_COLUMNS * _LEAST_COLUMNS
    return min(vocab_size, max(_LEAST_COLUMNS, min(fit, _MOST_COLUMNS)))


def _rounds_itself(gemms: Gemms, dtype: torch.dtype) -> bool:
    """True when a product of the tile's gradient may be written in this dtype."""
    return dtype == gemms.plan.gradient and gemms.multiply.has_kernel(dtype)


def _only(problem: HeadProblem, kept: Tensor) -> HeadProblem:
    temperature = problem.temperature
    return replace(
        problem,
        hidden=problem.hidden.index_select(0, kept),
        targets=problem.targets.index_select(0, kept),
        temperature=temperature[kept] if isinstance(temperature, Tensor) else temperature,
    )
