"""Registers, spills and shared memory of the gated delta rule's kernels, compiled ahead of time."""

import torch

from ..backends.resources import KernelReport
from ..backends.triton_report import ARCHITECTURES, compiling_for, read_kernel
from . import launch
from .row_chunks import RowChunks

_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_KEY_HEADS, _LENGTHS = 2, (70, 30)  # a chunk that is not full
# of the Qwen3.5 models
_GROUP, _HEAD_DIMS = 2, (128, 128)


def report(
    archs: tuple[int, ...] = ARCHITECTURES,
    *,
    dtype: torch.dtype = torch.bfloat16,
    group: int = _GROUP,
    head_dims: tuple[int, int] = _HEAD_DIMS,
) -> list[KernelReport]:
    """Every kernel of forward and backward, once an architecture.

    Args:
        group: value heads a key head.
        head_dims: K, V.
    """
    found = []
    for arch in archs:
        inputs = _inputs(dtype, group, *head_dims)
        with compiling_for(arch) as compiled:
            launch.backward(inputs, torch.zeros_like(inputs.v))
            launch.forward(inputs)
        # forward repeats what backward starts with, but for the output
        by_name = {kernel.metadata.name: kernel for kernel in compiled}
        for name, kernel in by_name.items():
            short = f"delta {name.removesuffix('_kernel')} {_NAMES[dtype]}"
            found.append(read_kernel(short, arch, kernel))
    return found


def _inputs(dtype: torch.dtype, group: int, K: int, V: int) -> launch.Inputs:
    """Views of one projection, as the layers make them."""
    T, heads = sum(_LENGTHS), _KEY_HEADS * group
    counts, dims = (_KEY_HEADS, _KEY_HEADS, heads), (K, K, V)
    widths = [count * dim for count, dim in zip(counts, dims, strict=True)]
    parts = torch.zeros(T, sum(widths), dtype=dtype).split(widths, dim=-1)
    q, k, v = (x.unflatten(-1, (count, -1)) for x, count in zip(parts, counts, strict=True))
    rows = RowChunks.from_lengths(_LENGTHS, "cpu")
    g, beta = torch.zeros(T, heads), torch.zeros(T, heads, dtype=dtype)
    return launch.Inputs(q, k, v, g, beta, rows, K**-0.5)
