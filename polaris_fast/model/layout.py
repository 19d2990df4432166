"""Where the rows of a packed buffer begin and end, and the index plans derived from that.

Shapes: T packed tokens, R rows, C chunk length, N chunks, L longest row of a group.

A packed buffer has no padding. Work that wants a rectangle (a chunk of the delta rule, a group of
attention rows, a convolution with its zeros in front) takes its tokens out through a `Regroup` and
puts the results back through the same one. Plans are built on the host with numpy, once a batch,
and shared by all layers; nothing here reads a device tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from polaris_kernels.gated_delta import RowChunks

# Attention rows share a padded rectangle while the shortest is at least this share of the longest:
# a score matrix then wastes under half of its entries.
GROUP_FILL = 0.75
# ... and rows this short share one anyway: their scores cost less than another call does.
GROUP_ALWAYS = 64


@dataclass(frozen=True, eq=False)
class Regroup:
    """Packed tokens -> the slots of a rectangle; some slots stay zero, no token is used twice."""

    source: Tensor  # (slots,) int64: token in each slot, 0 in an empty one
    empty: Tensor  # (empties,) int64: slots without a token
    slot: Tensor  # (T,) int64: slot of each token

    @staticmethod
    def build(tokens: np.ndarray, filled: np.ndarray, device: torch.device) -> Regroup:
        """tokens (slots,) int64, filled (slots,) bool; each token is in exactly one filled slot."""
        slots = np.flatnonzero(filled)
        slot = np.empty(len(slots), dtype=np.int64)
        slot[tokens[slots]] = slots
        arrays = (np.where(filled, tokens, 0), np.flatnonzero(~filled), slot)
        return Regroup(*(upload(array, device) for array in arrays))


@dataclass(frozen=True, eq=False)
class ChunkPlan:
    """Every row cut into chunks of `size` tokens, ordered by chunk number, longest row first.

    So step s of the recurrence over chunks works on one contiguous run of `active[s]` chunks, and
    its states are the first `active[s]` of the step before: no gather, no padding between rows.
    """

    size: int
    active: tuple[int, ...]  # chunks at each step, falling
    tokens: np.ndarray  # (N, C) int64
    filled: np.ndarray  # (N, C) bool
    device: torch.device
    _by_heads: dict[int, Regroup] = field(default_factory=dict)

    @property
    def num_chunks(self) -> int:
        return self.filled.shape[0]

    def regroup(self, num_heads: int) -> Regroup:
        """(T * H) rows of a (T, H, ...) tensor -> (N, H, C) slots."""
        if num_heads not in self._by_heads:
            heads = np.arange(num_heads)[None, :, None]
            tokens = self.tokens[:, None, :] * num_heads + heads
            filled = np.broadcast_to(self.filled[:, None, :], tokens.shape)
            self._by_heads[num_heads] = Regroup.build(tokens.ravel(), filled.ravel(), self.device)
        return self._by_heads[num_heads]


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Rows of similar length side by side: `groups` of (rows, padded length), longest first."""

    groups: tuple[tuple[int, int], ...]
    tokens: np.ndarray  # (slots,) int64, the groups one after the other
    filled: np.ndarray  # (slots,) bool
    device: torch.device
    _by_heads: dict[int, Regroup] = field(default_factory=dict)

    def regroup(self, num_heads: int) -> Regroup:
        """(T * H) rows of a (T, H, d) tensor -> for each group (rows, H, L) slots."""
        if num_heads not in self._by_heads:
            tokens, filled, first = [], [], 0
            for rows, length in self.groups:
                last = first + rows * length
                block = self.tokens[first:last].reshape(rows, 1, length)
                full = self.filled[first:last].reshape(rows, 1, length)
                block = block * num_heads + np.arange(num_heads)[None, :, None]
                tokens.append(block.ravel())
                filled.append(np.broadcast_to(full, block.shape).ravel())
                first = last
            self._by_heads[num_heads] = Regroup.build(
                np.concatenate(tokens), np.concatenate(filled), self.device
            )
        return self._by_heads[num_heads]


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """Row boundaries of a packed buffer, on the host and on the device."""

    lengths: tuple[int, ...]  # (R,) tokens of each row, all positive
    cu_seqlens: Tensor  # (R + 1,) int32: row r is [cu_seqlens[r], cu_seqlens[r + 1])
    position_ids: Tensor  # (T,) int64, from 0 in every row
    row_of_token: Tensor  # (T,) int64
    _chunks: dict[int, ChunkPlan] = field(default_factory=dict)
    _gaps: dict[int, Regroup] = field(default_factory=dict)

    @staticmethod
    def from_lengths(lengths: Sequence[int], device: torch.device | str = "cpu") -> PackedLayout:
        """Args: lengths of the rows in buffer order. Errors: ValueError when a row is empty."""
        if not lengths or min(lengths) < 1:
            raise ValueError(
                f"PackedLayout: every row needs at least one token, got lengths {list(lengths)}; "
                "drop empty rows before packing"
            )
        device = torch.device(device)
        counts = np.asarray(lengths, dtype=np.int64)
        starts = np.concatenate(([0], np.cumsum(counts)))
        rows = np.repeat(np.arange(len(counts)), counts)
        return PackedLayout(
            lengths=tuple(int(n) for n in lengths),
            cu_seqlens=upload(starts.astype(np.int32), device),
            position_ids=upload(np.arange(starts[-1]) - starts[rows], device),
            row_of_token=upload(rows, device),
        )

    @property
    def num_tokens(self) -> int:
        return self.position_ids.shape[0]

    @cached_property
    def max_seqlen(self) -> int:
        return max(self.lengths)

    @cached_property
    def long_cu_seqlens(self) -> Tensor:
        """(R + 1,) int64, always the same tensor: fla keeps its plans by the tensor's identity."""
        return self.cu_seqlens.long()

    @property
    def device(self) -> torch.device:
        return self.position_ids.device

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - np.asarray(self.lengths)

    def chunks(self, size: int) -> ChunkPlan:
        """The rows cut into chunks of `size` tokens for the delta rule."""
        if size not in self._chunks:
            counts = np.asarray(self.lengths)
            longest_first = np.argsort(-counts, kind="stable")
            chunks_of_row = -(-counts[longest_first] // size)
            active = [int((chunks_of_row > step).sum()) for step in range(chunks_of_row[0])]
            step = np.repeat(np.arange(len(active)), active)
            row = longest_first[np.concatenate([np.arange(n) for n in active])]
            offset = np.arange(size)
            tokens = (self._starts[row] + step * size)[:, None] + offset
            filled = offset < (counts[row] - step * size)[:, None]
            self._chunks[size] = ChunkPlan(size, tuple(active), tokens, filled, self.device)
        return self._chunks[size]

    @cached_property
    def row_chunks(self) -> RowChunks:
        """The same for the Triton kernels of the delta rule, in buffer order."""
        return RowChunks.from_lengths(self.lengths, self.device)

    def gapped(self, gap: int) -> Regroup:
        """The buffer with `gap` zero rows in front of every row: shifts cannot cross rows."""
        if gap not in self._gaps:
            rows = np.arange(len(self.lengths))
            slot = np.arange(self.num_tokens) + gap * (np.repeat(rows, self.lengths) + 1)
            filled = np.zeros(self.num_tokens + gap * len(rows), dtype=bool)
            filled[slot] = True
            tokens = np.zeros(len(filled), dtype=np.int64)
            tokens[slot] = np.arange(self.num_tokens)
            self._gaps[gap] = Regroup.build(tokens, filled, self.device)
        return self._gaps[gap]

    @cached_property
    def attention(self) -> AttentionPlan:
        """Rows grouped into padded rectangles for scaled dot product attention."""
        counts = np.asarray(self.lengths)
        longest_first = np.argsort(-counts, kind="stable")
        groups, tokens, filled, first = [], [], [], 0
        while first < len(counts):
            longest = int(counts[longest_first[first]])
            shortest = 0 if longest <= GROUP_ALWAYS else GROUP_FILL * longest
            last = first + int((counts[longest_first[first:]] >= shortest).sum())
            rows = longest_first[first:last]
            offset = np.arange(longest)
            groups.append((len(rows), longest))
            tokens.append((self._starts[rows][:, None] + offset).ravel())
            filled.append((offset < counts[rows][:, None]).ravel())
            first = last
        return AttentionPlan(
            tuple(groups), np.concatenate(tokens), np.concatenate(filled), self.device
        )


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A host array on the device; pinned first on CUDA, so that the copy does not wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
