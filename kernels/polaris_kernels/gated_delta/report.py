"""Registers, spills and shared memory of the gated delta rule's kernels, compiled ahead of time."""

import torch

from ..backends.resources import KernelReport
from ..backends.triton_report import ARCHITECTURES, compiling_for, read_kernel
from . import launch
from .row_chunks import RowChunks

# of the Qwen3.5 models; a group of two value heads, and a chunk that is not full
_KEY_HEADS, _GROUP, _HEAD_DIM, _LENGTHS = 2, 2, 128, (70, 30)


def report(archs: tuple[int, ...] = ARCHITECTURES) -> list[KernelReport]:
    """Every kernel of forward and backward on bf16 inputs, once an architecture."""
    found = []
    for arch in archs:
        inputs = _inputs(torch.bfloat16)
        with compiling_for(arch) as compiled:
            launch.backward(inputs, torch.zeros_like(inputs.v))
            launch.forward(inputs)
        # forward repeats what backward starts with, but for the output
        by_name = {kernel.metadata.name: kernel for kernel in compiled}
        for name, kernel in by_name.items():
            found.append(read_kernel(f"delta {name.removesuffix('_kernel')} bf16", arch, kernel))
    return found


def _inputs(dtype: torch.dtype) -> launch.Inputs:
    """Views of one projection, as the layers make them."""
    T, heads = sum(_LENGTHS), _KEY_HEADS * _GROUP
    widths = [h * _HEAD_DIM for h in (_KEY_HEADS, _KEY_HEADS, heads)]
    parts = torch.zeros(T, sum(widths), dtype=dtype).split(widths, dim=-1)
    q, k, v = (x.unflatten(-1, (-1, _HEAD_DIM)) for x in parts)
    g, beta = torch.zeros(T, heads), torch.zeros(T, heads, dtype=dtype)
    return launch.Inputs(q, k, v, g, beta, RowChunks.from_lengths(_LENGTHS, "cpu"))
