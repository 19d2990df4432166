"""Registers, spills and shared memory of the Triton row kernels, compiled ahead of time.

The kernels are reached through the functions that launch them, on small CPU tensors and with a
driver that names an architecture and never launches: what is compiled is what a GPU would run.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .resources import KernelReport, number, own_shared, resource_usage

ARCHITECTURES = (80, 90, 100)
# a vocabulary with a last block that is not full
VOCAB_SIZE = 248_320
_WARP = 32


@dataclass(frozen=True)
class _Case:
    name: str
    launch: Callable[[], None]


class _Ahead:
    """Stands in for a GPU's driver: enough of it to compile, nothing to launch with."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, _WARP)

    def get_current_device(self) -> int:
        # one compile cache for each architecture
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling_for(arch: int) -> Iterator[list[Any]]:
    """Inside, launching a kernel only compiles it for `arch`; yields the kernels, one a launch."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    run = JITFunction.run
    compiled: list[Any] = []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))
        return compiled[-1]

    before = driver._active
    driver.set_active(_Ahead(arch))
    JITFunction.run = compile_only
    try:
        yield compiled
    finally:
        JITFunction.run = run
        driver._active = before


def report(archs: tuple[int, ...] = ARCHITECTURES) -> list[KernelReport]:
    """Compile every case for every architecture and read the cubins."""
    found = []
    for arch in archs:
        for case in _cases():
            with compiling_for(arch) as compiled:
                case.launch()
            (kernel,) = compiled
            found.append(read_kernel(case.name, arch, kernel))
    return found


def _cases() -> Iterator[_Case]:
    from . import triton_launch as launch

    C, V = 2, VOCAB_SIZE
    vector = torch.zeros(C, dtype=torch.float32, device="cpu")
    targets = vector.new_zeros(C, dtype=torch.int64)
    plain = launch.Scaling(scale=1.0)
    full = launch.Scaling(scale=vector, cap_scale=0.1, bias=vector.new_zeros(V), rounds=True)
    state = launch.RowState.empty(C, vector)

    def statistics(dtype: torch.dtype, scaling: Any, kept: Tensor | None = None) -> _Case:
        logits = vector.new_empty(C, V, dtype=dtype)
        return _Case(
            f"statistics {_short(dtype)}{_suffix(scaling)}{' kept' if kept is not None else ''}",
            lambda: launch.row_statistics(logits, targets, scaling, state, kept),
        )

    def gradient(
        dtype: torch.dtype,
        to: torch.dtype,
        parts: str,
        scaling: Any = plain,
        index: Tensor | None = None,
    ) -> _Case:
        logits = vector.new_empty(C, V, dtype=dtype)
        out = launch.narrow_view(logits, to) if index is None else vector.new_empty(C, V, dtype=to)
        gradients = launch.TokenGradients(
            **{name: vector if name in parts else None for name in ("logp", "entropy", "lse")}
        )
        name = f"gradient {_short(dtype)}->{_short(to)} {parts}{_suffix(scaling)}"
        return _Case(
            name + (" indexed" if index is not None else ""),
            lambda: launch.row_gradients(logits, targets, scaling, state, gradients, out, index),
        )

    fp32, bf16 = torch.float32, torch.bfloat16
    yield statistics(fp32, plain)
    yield statistics(bf16, launch.Scaling(scale=vector), vector)
    yield statistics(fp32, full)
    yield gradient(fp32, bf16, "logp")
    yield gradient(fp32, fp32, "logp")
    yield gradient(fp32, bf16, "logp entropy")
    yield gradient(bf16, bf16, "logp entropy lse")
    yield gradient(fp32, bf16, "logp", index=targets)
    yield gradient(fp32, bf16, "logp entropy lse", full)


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def _suffix(scaling: Any) -> str:
    return " bias cap" if scaling.bias is not None else ""


def read_kernel(name: str, arch: int, kernel: Any) -> KernelReport:
    """Resources of one compiled kernel, from its cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = resource_usage(file.name)
    return KernelReport(
        name=f"triton {name}",
        arch=arch,
        registers=number(text, "REG"),
        spill_bytes=number(text, "STACK") + number(text, "LOCAL"),
        # Triton asks for its shared memory at launch, so the cubin itself lists none
        shared_bytes=own_shared(text, arch) + kernel.metadata.shared,
        num_warps=kernel.metadata.num_warps,
    )
