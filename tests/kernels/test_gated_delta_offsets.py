"""The gated delta rule's kernels on buffers of more than 2^31 elements, of which a few are touched.

One row of two chunks lies at the end of 2^30 tokens and 2^23 chunks, so that every buffer's offsets
pass 32 bits: (T, heads) and whatever is wider, and the states. In Triton's interpreter, which wraps
32-bit integers as a GPU does; its programs are told that theirs are the last chunks.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from polaris_kernels.gated_delta import RowChunks

from .sparse import sparse_zeros

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for the interpreter alone")

# key columns enough for two blocks in the state gradient
TOKENS, HEADS, K, V, CHUNK = 40, 2, 80, 16, 32
CHUNKS = -(-TOKENS // CHUNK)
ALL_TOKENS, ALL_CHUNKS = 2**30 + TOKENS, 2**23 + CHUNKS


def take_only_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors of two or more dimensions are sparse."""
    empty, new_empty = torch.empty, Tensor.new_empty

    def sparse_empty(shape: Any, *, dtype: Any = None, **options: Any) -> Tensor:
        if isinstance(shape, int) or len(shape) < 2:
            return empty(shape, dtype=dtype, **options)
        return sparse_zeros(*shape, dtype=dtype)

    def sparse_new(like: Tensor, *shape: int, dtype: Any = None, **options: Any) -> Tensor:
        if len(shape) < 2:
            return new_empty(like, *shape, dtype=dtype, **options)
        return sparse_zeros(*shape, dtype=dtype or like.dtype)

    monkeypatch.setattr(torch, "empty", sparse_empty)
    monkeypatch.setattr(Tensor, "new_empty", sparse_new)
    monkeypatch.setattr(torch, "empty_like", lambda x, **_: sparse_zeros(*x.shape, dtype=x.dtype))


def start_at_the_last_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of grids over chunks and heads, the only ones with a second dimension."""
    from triton.runtime.interpreter import InterpreterBuilder

    program_id = InterpreterBuilder.create_get_program_id

    def late(self: Any, axis: int) -> Any:
        found = program_id(self, axis)
        if axis == 0 and self.grid_dim[1] > 1:
            found.data = found.data + (ALL_CHUNKS - CHUNKS)
        return found

    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", late)


def table_of_the_end() -> RowChunks:
    start = ALL_TOKENS - TOKENS
    first, length = (sparse_zeros(ALL_CHUNKS, dtype=torch.int64) for _ in range(2))
    first[-CHUNKS:] = start + torch.arange(0, TOKENS, CHUNK)
    length[-CHUNKS:] = torch.tensor([CHUNK, TOKENS - CHUNK])
    return RowChunks(
        ALL_TOKENS, ALL_CHUNKS, 1, CHUNK, first, length, torch.tensor([0]),
        torch.tensor([start, ALL_TOKENS]), torch.tensor([ALL_CHUNKS - CHUNKS, ALL_CHUNKS]),
    )  # fmt: skip


def at_the_end(x: Tensor) -> Tensor:
    away = sparse_zeros(ALL_TOKENS, *x.shape[1:], dtype=x.dtype)
    away[-TOKENS:] = x
    return away


def test_offsets_are_64_bit(monkeypatch):
    from polaris_kernels.gated_delta import launch

    class AtTheEnd(launch.Inputs):
        """Grids of the last chunks alone."""

        key_grid = value_grid = (CHUNKS, HEADS)

    g = torch.Generator().manual_seed(0)
    q, k, v, upstream = (torch.randn(TOKENS, HEADS, width, generator=g) for width in (K, K, V, V))
    decay = -torch.randn(TOKENS, HEADS, generator=g).exp()
    tensors = (q, k, v, decay, torch.rand(TOKENS, HEADS, generator=g))
    rows = RowChunks.from_lengths((TOKENS,), "cpu", chunk_size=CHUNK)
    near = launch.Inputs(*tensors, rows, K**-0.5)
    wanted = [launch.forward(near), *launch.backward(near, upstream)]
    wanted_state = launch._scan(near, launch._prepare(near))

    far = AtTheEnd(*map(at_the_end, tensors), table_of_the_end(), K**-0.5)
    far_upstream = at_the_end(upstream)
    take_only_what_is_written(monkeypatch)
    start_at_the_last_chunks(monkeypatch)
    found = [launch.forward(far), *launch.backward(far, far_upstream)]
    # offsets that wrapped alike in every kernel would cancel
    assert torch.equal(launch._scan(far, launch._prepare(far))[-CHUNKS:], wanted_state)
    for ours, want in zip(found, wanted, strict=True):
        assert ours.numel() >= 2**31
        assert torch.equal(ours[-TOKENS:], want)
        assert want.any()
