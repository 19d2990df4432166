"""Registers, spills and shared memory of every row kernel, compiled ahead of time, without a GPU.

    python -m polaris_kernels.backends.triton_report [--json]

The kernels are reached through the functions that launch them, on small CPU tensors and with a
driver that names an architecture and never launches: what is compiled is what a GPU would run.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ARCHITECTURES = (80, 90, 100)
# a vocabulary with a last block that is not full
VOCAB_SIZE = 248_320
_WARP = 32


@dataclass(frozen=True)
class KernelReport:
    """Resources of one compiled kernel."""

    name: str
    arch: int
    registers: int
    """a thread"""
    spill_bytes: int
    """stack and local memory a thread"""
    shared_bytes: int
    """static and dynamic, a program"""
    num_warps: int


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
            found.append(_read(case.name, arch, kernel))
    return found


def table(reports: list[KernelReport]) -> str:
    """The reports as text, one line a kernel and an architecture."""
    lines = [
        f"{'kernel':<46} {'arch':>6} {'registers':>9} {'spills':>6} {'shared':>7} {'warps':>5}",
        *(
            f"{r.name:<46} {'sm_' + str(r.arch):>6} {r.registers:>9} {r.spill_bytes:>6} "
            f"{r.shared_bytes:>7} {r.num_warps:>5}"
            for r in reports
        ),
    ]
    return "\n".join(lines)


def _cases() -> Iterator[_Case]:
    from . import triton_launch as launch

    C, V = 2, VOCAB_SIZE
    vector = torch.zeros(C)
    targets = torch.zeros(C, dtype=torch.int64)
    plain = launch.Scaling(scale=1.0)
    full = launch.Scaling(scale=vector, cap_scale=0.1, bias=torch.zeros(V), rounds=True)
    state = launch.RowState.empty(C, vector)

    def statistics(dtype: torch.dtype, scaling: Any, kept: Tensor | None = None) -> _Case:
        logits = torch.empty(C, V, dtype=dtype)
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
        logits = torch.empty(C, V, dtype=dtype)
        out = launch.narrow_view(logits, to) if index is None else torch.empty(C, V, dtype=to)
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


def _read(name: str, arch: int, kernel: Any) -> KernelReport:
    """Resources from the cubin, read by the cuobjdump that Triton brings along."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return KernelReport(
        name=name,
        arch=arch,
        registers=_number(text, "REG"),
        spill_bytes=_number(text, "STACK") + _number(text, "LOCAL"),
        # Triton asks for its shared memory at launch, so the cubin itself lists none
        shared_bytes=_number(text, "SHARED") + kernel.metadata.shared,
        num_warps=kernel.metadata.num_warps,
    )


def _number(text: str, key: str) -> int:
    found = re.search(rf"\b{key}:(\d+)", text)
    if found is None:
        raise RuntimeError(f"triton_report: cuobjdump printed no {key}: in\n{text}")
    return int(found.group(1))


def main() -> None:
    """Print the table, or JSON for a program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    arguments = parser.parse_args()
    # the interpreter compiles nothing; Triton reads this when it is imported
    os.environ.pop("TRITON_INTERPRET", None)
    reports = report()
    print(json.dumps([asdict(r) for r in reports]) if arguments.json else table(reports))


if __name__ == "__main__":
    main()
