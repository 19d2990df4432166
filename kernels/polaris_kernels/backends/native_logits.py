"""The compiled row pass on logits that somebody else made: one read, then one read and one write.

Shapes: `M rows of logits . K tokens (K <= M) . V vocab`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..objective import TokenGradients
from ..problem import HeadProblem
from .base import Statistics
from .chunks import finish
from .logits_pass import by_rows, spread
from .native_library import NativeLibrary
from .row_pass import RowStatistics, row_coefficients, shifted_targets


@dataclass(frozen=True)
class LogitsState:
    """What forward keeps for backward."""

    statistics: Statistics
    """(K,) each"""
    rows: RowStatistics
    """(M,) each"""
    problem: HeadProblem
    """the softmax over the logits; targets and temperature (M,), no operands"""
    positions: Tensor | None
    """(K,) int64 row of each token; None: row t is token t"""
    listed: Tensor | None
    """int64 rows that a token reads; None: all"""


class NativeLogitsPass:
    """Statistics and gradients of rows of logits."""

    def __init__(self, library: NativeLibrary) -> None:
        self.library = library

    def statistics(
        self,
        flat: Tensor,
        targets: Tensor,
        temperature: float | Tensor,
        positions: Tensor | None,
        kept: Tensor | None,
    ) -> LogitsState:
        """Statistics of (M, V) logits; targets, temperature and kept are (K,)."""
        M = flat.shape[0]
        listed = positions
        if kept is not None:
            alive = kept.nonzero().squeeze(1)
            listed = alive if positions is None else positions.index_select(0, alive)
        if positions is not None:
            targets = spread(targets, positions, M, 0)
            if isinstance(temperature, Tensor):
                temperature = spread(temperature, positions, M, 1)
        problem = _problem(flat, targets, temperature)
        rows = _one_certain_token(M, flat, problem.acc_dtype)
        z = by_rows(flat)
        everything = slice(0, M), slice(0, flat.shape[1])
        self.library.statistics(problem, z, *everything, rows, accumulate=False, listed=listed)
        rows = shifted_targets(rows)
        found = finish(rows)
        if positions is not None:
            parts = (found.logp, found.entropy, found.lse)
            found = Statistics(*(part.index_select(0, positions) for part in parts))
        return LogitsState(found, rows, problem, positions, listed)

    def gradient(
        self, flat: Tensor, state: LogitsState, known: TokenGradients, *, inplace: bool
    ) -> Tensor:
        """(M, V) d loss / d logits, over the logits themselves when `inplace`."""
        M, problem = flat.shape[0], state.problem
        if state.positions is not None:
            parts = (known.logp, known.entropy, known.lse)
            everywhere = (None if p is None else spread(p, state.positions, M, 0) for p in parts)
            known = TokenGradients(*everywhere)
        factor = problem.logit_scale / problem.temperature_of(slice(0, M))
        entropy = finish(state.rows).entropy
        factors = row_coefficients(known, state.rows, entropy, factor)
        z = by_rows(flat)
        out = z if inplace else torch.empty_like(z)
        self.library.gradient(
            problem, z, slice(0, M), state.rows.maximum, factors, out=out, rows=state.listed
        )
        if state.listed is not None:
            unread = flat.new_ones(M, dtype=torch.bool)
            unread[state.listed] = False
            out.index_fill_(0, unread.nonzero().squeeze(1), 0)
        if not inplace:
            return out
        if z is not flat:
            return flat.copy_(out)
        # the library's writes are unknown to autograd, which must refuse other users of the logits
        torch.autograd.graph.increment_version(flat)
        return out


def _problem(flat: Tensor, targets: Tensor, temperature: float | Tensor) -> HeadProblem:
    M, V = flat.shape
    return HeadProblem(
        hidden=flat.new_empty(M, 0),
        weight=flat.new_empty(V, 0),
        targets=targets,
        bias=None,
        temperature=temperature,
        softcap=None,
        logit_scale=1.0,
        rounds_logits=False,
        chunk_bytes=0,
        hidden_grad_dtype=flat.dtype,
        weight_grad_dtype=flat.dtype,
    )


def _one_certain_token(num_rows: int, like: Tensor, dtype: torch.dtype) -> RowStatistics:
    """What rows that are never read come out as: log-prob and entropy 0."""
    zero, one = like.new_zeros(3, num_rows, dtype=dtype), like.new_ones(num_rows, dtype=dtype)
    return RowStatistics(maximum=zero[0], sum_exp=one, sum_z_exp=zero[1], target=zero[2])
