"""Rows of a packed buffer cut into chunks: the tables that the kernels read.

Shapes: `R rows . N chunks of all rows`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..host_tables import send

CHUNK_SIZE = 64


@dataclass(frozen=True, eq=False)
class RowChunks:
    """Chunks in buffer order; a row's last one may be shorter. Tables are int64, on the device."""

    num_tokens: int
    num_chunks: int
    num_rows: int
    chunk_size: int
    first: Tensor
    """(N,) first token of each chunk"""
    length: Tensor
    """(N,) its tokens, 1 to chunk_size"""
    order: Tensor
    """(R,) rows, longest first"""
    row_start: Tensor
    """(R + 1,) row r is [row_start[r], row_start[r + 1])"""
    row_chunk: Tensor
    """(R + 1,) its chunks, likewise"""

    @staticmethod
    def from_lengths(
        lengths: Sequence[int], device: torch.device | str, *, chunk_size: int = CHUNK_SIZE
    ) -> "RowChunks":
        """Tables for rows of these lengths, made on the host and sent in one copy without a wait.

        Args:
            lengths: tokens of each row, in buffer order.
            chunk_size: tokens solved as one system; a power of two, 32 at least.
        Raises:
            ValueError: no rows, an empty row, or a chunk size that the kernels cannot take.
        """
        if len(lengths) == 0 or min(lengths) < 1:
            raise ValueError(
                f"RowChunks: every row needs at least one token, got lengths {list(lengths)}; "
                "drop empty rows before packing"
            )
        if chunk_size < 32 or chunk_size & (chunk_size - 1):
            raise ValueError(
                f"RowChunks: chunk_size must be a power of two from 32 on, got {chunk_size}"
            )
        counts = np.asarray(lengths, dtype=np.int64)
        chunks = -(-counts // chunk_size)
        row_start, row_chunk = (np.concatenate(([0], np.cumsum(x))) for x in (counts, chunks))
        row = np.repeat(np.arange(len(counts)), chunks)
        inside = (np.arange(row_chunk[-1]) - row_chunk[row]) * chunk_size
        tables = (
            row_start[row] + inside,
            np.minimum(counts[row] - inside, chunk_size),
            np.argsort(-counts, kind="stable"),
            row_start,
            row_chunk,
        )
        sent = send(np.concatenate(tables), torch.device(device))
        return RowChunks(
            int(row_start[-1]),
            int(row_chunk[-1]),
            len(counts),
            chunk_size,
            *sent.split([len(table) for table in tables]),
        )
