"""Statistics and gradients of rows of logits that somebody else made: a backend's own pass over
them, or, where it has none, torch ops a block of rows at a time.

Shapes: `V vocab . M rows of logits . K tokens (K <= M)`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..objective import TokenGradients
from ..problem import accumulation_dtype
from .base import Statistics
from .chunks import finish
from .row_pass import (
    RowStatistics,
    block_rows,
    gradient_block_,
    lift_,
    reduce_block,
    row_blocks,
    row_coefficients,
)
from .workspace import borrowed


@dataclass(frozen=True)
class LogitsProblem:
    """Rows of a flat (M, V) logits tensor, as they enter the softmax."""

    positions: Tensor | None
    """(K,) int64 row of each token; None: the first K rows"""
    targets: Tensor
    """(K,) int64"""
    temperature: float | Tensor
    """number or (K,)"""
    kept: Tensor | None
    """(K,) 0 where a row's content must not matter"""
    inplace: bool
    kernels: Any
    """the backend's `logits_pass`; None: torch ops"""

    def load(self, flat: Tensor, block: slice, z: Tensor) -> None:
        """z (rows, V) = the block's logits / temperature, in z's dtype."""
        if self.positions is None:
            z.copy_(flat[block])
        else:
            z.copy_(flat.index_select(0, self.positions[block]))
        if self.kept is not None:
            z.masked_fill_(self.kept[block, None] == 0, 0.0)
        if isinstance(self.temperature, Tensor):
            z.div_(self.temperature[block, None])
        elif self.temperature != 1.0:
            z.mul_(1.0 / self.temperature)

    def factor(self) -> float | Tensor:
        """1 / temperature, number or (K, 1)."""
        if isinstance(self.temperature, Tensor):
            return 1.0 / self.temperature.unsqueeze(1)
        return 1.0 / self.temperature


def by_rows(flat: Tensor) -> Tensor:
    """The same values, every row's own columns next to each other."""
    return flat if flat.stride(1) == 1 else flat.contiguous()


def spread(values: Tensor, positions: Tensor, num_rows: int, fill: int) -> Tensor:
    """(K,) -> (num_rows,): values at their positions, `fill` elsewhere."""
    return values.new_full((num_rows,), fill).index_copy_(0, positions, values)


def logits_statistics(problem: LogitsProblem, flat: Tensor) -> tuple[Any, Statistics]:
    """What `logits_gradient` wants to see again, and the statistics of the K tokens."""
    if problem.kernels is not None:
        state = problem.kernels.statistics(
            flat, problem.targets, problem.temperature, problem.positions, problem.kept
        )
        return state, state.statistics
    K, V = problem.targets.shape[0], flat.shape[1]
    like = flat.new_empty(0, dtype=accumulation_dtype(flat.dtype))
    rows = RowStatistics.empty(K, like)
    height = block_rows(K, V, flat.device)
    with borrowed(((height, V), (height, V)), like) as (buffer, scratch):
        for block in row_blocks(K, V, flat.device):
            z, spare = buffer[: block.stop - block.start], scratch[: block.stop - block.start]
            problem.load(flat, block, z)
            reduce_block(z, spare, problem.targets[block], rows[block], keep="exp")
    return rows, finish(rows)


def logits_gradient(
    problem: LogitsProblem, flat: Tensor, rows: Any, known: TokenGradients
) -> Tensor:
    """(M, V) d loss / d logits, in the logits' own memory when the problem says so."""
    if problem.kernels is not None:
        return problem.kernels.gradient(flat, rows, known, inplace=problem.inplace)
    K, V = problem.targets.shape[0], flat.shape[1]
    acc = accumulation_dtype(flat.dtype)
    out = flat if problem.inplace else torch.zeros_like(flat)
    coefficients = row_coefficients(known, rows, finish(rows).entropy, problem.factor())
    kept = "exp" if known.entropy is None else "shifted"
    targets, maximum = problem.targets.unsqueeze(1), rows.maximum.unsqueeze(1)
    if problem.inplace and problem.positions is not None:
        unused = torch.ones(flat.shape[0], dtype=torch.bool, device=flat.device)
        unused[problem.positions] = False
        out.masked_fill_(unused.unsqueeze(1), 0.0)
    height = block_rows(K, V, flat.device)
    with borrowed(((height, V), (height, V)), flat.new_empty(0, dtype=acc)) as (buffer, scratch):
        for block in row_blocks(K, V, flat.device):
            z, spare = buffer[: block.stop - block.start], scratch[: block.stop - block.start]
            problem.load(flat, block, z)
            lift_(z.sub_(maximum[block]))
            if kept == "exp":
                z.exp_()
            gradient_block_(
                z, spare, targets[block], coefficients[block], kept=kept, cap_slope=None
            )
            if problem.positions is None:
                out[block].copy_(z)
            else:
                out.index_copy_(0, problem.positions[block], z.to(out.dtype))
    return out
