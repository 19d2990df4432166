"""Buffers that outlive a call: on a CPU, fresh pages cost as much as a pass over the logits.

CUDA's caching allocator does this already, so only CPU buffers are kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local

import torch
from torch import Tensor

_kept = local()


@contextmanager
def borrowed(shapes: tuple[tuple[int, int], ...], like: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Uninitialised tensors of the given shapes with the dtype and device of `like`.

    They belong to the caller inside the block only. Nested use gets memory of its own.
    """
    sizes = [rows * columns for rows, columns in shapes]
    total = sum(sizes)
    on_cpu = like.device.type == "cpu"
    flat = _take(total, like.dtype) if on_cpu else like.new_empty(total)
    try:
        pieces = flat[:total].split(sizes)
        yield tuple(piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True))
    finally:
        if on_cpu:
            _free_buffers().setdefault(like.dtype, []).append(flat)


def release_workspace() -> None:
    """Give this thread's CPU buffers back to the system."""
    _free_buffers().clear()


def _take(total: int, dtype: torch.dtype) -> Tensor:
    """The smallest free buffer that is large enough, else a new one for the largest that is not."""
    free = sorted(_free_buffers().pop(dtype, []), key=Tensor.numel)
    _free_buffers()[dtype] = free
    for i, buffer in enumerate(free):
        if buffer.numel() >= total:
            return free.pop(i)
    del free[-1:]
    # a buffer born in inference mode could not be written to outside of it
    with torch.inference_mode(False):
        return torch.empty(total, dtype=dtype, device="cpu")


def _free_buffers() -> dict[torch.dtype, list[Tensor]]:
    if not hasattr(_kept, "buffers"):
        _kept.buffers = {}
    buffers: dict[torch.dtype, list[Tensor]] = _kept.buffers
    return buffers
