"""Registers, spills and shared memory of the compiled CUDA kernels, read from the built library."""

import re
from collections.abc import Iterator

import torch

from .cuda_library import DTYPES, PATH, CudaLibrary
from .resources import KernelReport, number, own_shared, resource_usage

VOCAB_SIZE = 248_320
# kThreads and kPassThreads of csrc/cuda/row_kernels.h
_NUM_WARPS = 8
_NUM_WARPS_FP32_PASS = 16
# the most shared memory a block may ask for
_BLOCK_BYTES = {80: 163 * 1024, 90: 227 * 1024}
_NAMES = {0: "fp32", 1: "bf16"}
_KERNEL = re.compile(r"(row_statistics|row_gradient|row_pass)I(?:Li(\d)E)(?:Li(\d)E)?Lb(\d)E")


def report() -> list[KernelReport]:
    """Every instance for every architecture in the library; `row_pass` on rows of 248,320 columns,
    or on the widest power of two that one block holds."""
    return sorted(_read(resource_usage(PATH)), key=lambda r: (r.arch, r.name))


def _read(text: str) -> Iterator[KernelReport]:
    library = CudaLibrary()
    arch = 0
    name = None
    for line in text.splitlines():
        if found := re.search(r"arch = sm_(\d+)", line):
            arch = int(found.group(1))
        elif "Function " in line:
            name = line
        elif "REG:" in line and name is not None:
            if found := _KERNEL.search(name):
                yield _one(library, arch, found, line)
            name = None


def _one(library: CudaLibrary, arch: int, found: re.Match[str], line: str) -> KernelReport:
    kernel, first, second, extras = found.groups()
    dtype = {value: key for key, value in DTYPES.items()}[int(first)]
    types = _NAMES[int(first)] + (f"->{_NAMES[int(second)]}" if second else "")
    num_warps = _NUM_WARPS
    # what every block has beside its share of the row
    dynamic = library.shared_bytes(1, torch.float32, 1) - 16
    suffix = " bias cap" if extras == "1" else ""
    if kernel == "row_pass":
        width = VOCAB_SIZE
        while not (cluster := library.cluster_size(width, dtype, arch, _BLOCK_BYTES[arch])):
            width = 1 << (width - 1).bit_length() - 1
        dynamic = library.shared_bytes(width, dtype, cluster)
        num_warps = _NUM_WARPS_FP32_PASS if dtype == torch.float32 else _NUM_WARPS
        suffix += f" V {width} over {cluster}"
    elif kernel == "row_gradient":
        dynamic = 0
    return KernelReport(
        name=f"cuda {kernel.removeprefix('row_')} {types}{suffix}",
        arch=arch,
        registers=number(line, "REG"),
        spill_bytes=number(line, "STACK") + number(line, "LOCAL"),
        shared_bytes=own_shared(line, arch) + dynamic,
        num_warps=num_warps,
    )
