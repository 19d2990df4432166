"""Tensors of many more elements than there is memory: pages that nobody writes cost nothing."""

import math
import mmap

import pytest
import torch
from torch import Tensor

# MAP_NORESERVE of Linux
_NO_RESERVE = 0x4000


def sparse_zeros(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros, of which only touched pages take memory."""
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    except OSError:
        pytest.skip(f"the system maps no {size / 2**30:.0f} GiB, written or not")
    return torch.frombuffer(memory, dtype=dtype).view(shape)
