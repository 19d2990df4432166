"""The gated delta rule of Gated DeltaNet layers over packed rows, forward and backward in Triton.

rule           the public function
row_chunks     tables of a packed buffer's chunks, once a batch
reference      the rule and the chunk equations in plain torch
launch         which kernel runs when, on what
sizes          warps, stages and tile widths of each
work           what a profiler is told of each
system_kernels, chunk_kernels, scan_kernels, gradient_kernels, tiles
"""

from .row_chunks import RowChunks
from .rule import gated_delta_rule

__all__ = ["RowChunks", "gated_delta_rule"]
