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
    if like.device.type != "cpu":
        flat = like.new_empty(total)
    else:
        flat = _free_buffers().pop(like.dtype, like)
        if flat.numel() < total:
            # a buffer born in inference mode could not be written to outside of it
            with torch.inference_mode(False):
                flat = torch.empty(total, dtype=like.dtype)
    try:
        pieces = flat[:total].split(sizes)
        yield tuple(piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True))
    finally:
        if like.device.type == "cpu":
            _free_buffers()[like.dtype] = flat


def release_workspace() -> None:
    """Give this thread's CPU buffers back to the system."""
    _free_buffers().clear()


def _free_buffers() -> dict[torch.dtype, Tensor]:
    if not hasattr(_kept, "buffers"):
        _kept.buffers = {}
    buffers: dict[torch.dtype, Tensor] = _kept.buffers
    return buffers
