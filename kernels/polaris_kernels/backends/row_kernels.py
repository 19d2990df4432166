"""Who runs the row pass on a GPU: Triton's kernels, or the compiled ones where they take the rows.

Shapes: `C rows of logits . V vocab . K listed rows`.
"""

from typing import Protocol

import torch
from torch import Tensor

from ..foreseen import RowRule
from ..objective import TokenGradients
from . import cuda_library as cuda
from . import triton_launch
from .cuda_library import CudaLibrary
from .triton_launch import RowState, Scaling


class RowKernels(Protocol):
    """Statistics and gradients of rows of raw logits."""

    def statistics(
        self,
        logits: Tensor,
        targets: Tensor,
        scaling: Scaling,
        out: RowState,
        kept: Tensor | None = None,
    ) -> None:
        """As `triton_launch.row_statistics`."""

    def gradients(
        self,
        logits: Tensor,
        targets: Tensor,
        scaling: Scaling,
        state: RowState,
        gradients: TokenGradients,
        out: Tensor,
        index: Tensor | None = None,
    ) -> None:
        """As `triton_launch.row_gradients`."""


class TritonRows:
    """Two reads of a row."""

    statistics = staticmethod(triton_launch.row_statistics)
    gradients = staticmethod(triton_launch.row_gradients)


class CudaRows:
    """One read of a row where its loss is foreseen and a cluster holds it.

    fp16 and fp64, and rows that do not start at multiples of 16 bytes, go to Triton's kernels.
    """

    def __init__(self, library: CudaLibrary, cluster: int = 0) -> None:
        self.library = library
        self.triton = TritonRows()
        self.cluster = cluster
        """blocks that share a row; 0: by its width, -1: two reads"""

    def statistics(
        self,
        logits: Tensor,
        targets: Tensor,
        scaling: Scaling,
        out: RowState,
        kept: Tensor | None = None,
    ) -> None:
        if not cuda.takes(logits):
            self.triton.statistics(logits, targets, scaling, out, kept)
            return
        with torch.cuda.device_of(logits):
            given, keep = cuda.describe_logits(logits, targets, scaling, kept)
            self.library.statistics(given, cuda.describe_state(out))
        del keep

    def gradients(
        self,
        logits: Tensor,
        targets: Tensor,
        scaling: Scaling,
        state: RowState,
        gradients: TokenGradients,
        out: Tensor,
        index: Tensor | None = None,
    ) -> None:
        if not cuda.takes(logits, out):
            self.triton.gradients(logits, targets, scaling, state, gradients, out, index)
            return
        if not out.shape[0]:
            return
        with torch.cuda.device_of(logits):
            given, keep = cuda.describe_logits(logits, targets, scaling, None)
            rule, keep_too = cuda.describe_rule(RowRule(gradients))
            to = cuda.describe_out(out, index)
            self.library.gradient(given, cuda.describe_state(state), rule, to)
        del keep, keep_too

    def takes_rule(self, logits: Tensor, out: Tensor) -> bool:
        """True where `both` reads these rows."""
        return cuda.takes(logits, out)

    def both(
        self,
        logits: Tensor,
        targets: Tensor,
        scaling: Scaling,
        state: RowState,
        rule: RowRule,
        out: Tensor,
    ) -> None:
        """Fill `state` and `out` in one pass. Arguments as of the two others."""
        with torch.cuda.device_of(logits):
            given, keep = cuda.describe_logits(logits, targets, scaling, None)
            made, keep_too = cuda.describe_rule(rule)
            to = cuda.describe_out(out)
            self.library.row_pass(given, cuda.describe_state(state), made, to, self.cluster)
        del keep, keep_too
