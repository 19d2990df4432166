"""The row kernels on logits that somebody else made: one read, then one read and one write.

The kernels run over all M rows of the logits; a row that no token points at is never read and gets
a zero gradient, so nothing is gathered, and nothing but the gradient is written.

Shapes: `M rows of logits . K tokens (K <= M) . V vocab`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..objective import TokenGradients
from .base import Statistics
from .logits_pass import by_rows, spread
from .row_kernels import RowKernels
from .triton_launch import RowState, Scaling, check_device


@dataclass(frozen=True)
class LogitsState:
    """What forward keeps for backward."""

    statistics: Statistics
    """(K,) each"""
    rows: RowState
    """(M,) each"""
    targets: Tensor
    """(M,) int64"""
    scaling: Scaling
    positions: Tensor | None
    """(K,) int64 row of each token; None: row t is token t"""


class TritonLogitsPass:
    """Statistics and gradients of rows of logits."""

    def __init__(self, kernels: RowKernels) -> None:
        self.kernels = kernels

    def statistics(
        self,
        flat: Tensor,
        targets: Tensor,
        temperature: float | Tensor,
        positions: Tensor | None,
        kept: Tensor | None,
    ) -> LogitsState:
        """Statistics of (M, V) logits; targets, temperature and kept are (K,)."""
        check_device(flat.device)
        M = flat.shape[0]
        rows = RowState.empty(M, flat)
        if positions is not None:
            alive = kept if kept is not None else torch.ones_like(targets)
            kept = spread(alive, positions, M, 0)
            targets = spread(targets, positions, M, 0)
            if isinstance(temperature, Tensor):
                temperature = spread(temperature, positions, M, 1)
        scaling = Scaling.make(temperature)
        self.kernels.statistics(by_rows(flat), targets, scaling, rows, kept)
        # backward reads `rows`; what the caller gets may be changed in place before
        found = replace(rows.statistics, entropy=rows.entropy.clone())
        if positions is not None:
            found = Statistics(
                logp=found.logp.index_select(0, positions),
                entropy=found.entropy.index_select(0, positions),
                lse=found.lse.index_select(0, positions),
            )
        return LogitsState(found, rows, targets, scaling, positions)

    def gradient(
        self, flat: Tensor, state: LogitsState, known: TokenGradients, *, inplace: bool
    ) -> Tensor:
        """(M, V) d loss / d logits, over the logits themselves when `inplace`."""
        if state.positions is not None:
            M = flat.shape[0]
            known = TokenGradients(
                *(
                    None if part is None else spread(part, state.positions, M, 0)
                    for part in (known.logp, known.entropy, known.lse)
                )
            )
        logits = by_rows(flat)
        out = logits if inplace else torch.empty_like(logits)
        self.kernels.gradients(logits, state.targets, state.scaling, state.rows, known, out)
        if not inplace:
            return out
        if logits is not flat:
            return flat.copy_(out)
        # a kernel's writes are unknown to autograd, which must refuse other users of the logits
        torch.autograd.graph.increment_version(flat)
        return out
