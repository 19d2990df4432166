"""What a compiled kernel takes of a multiprocessor, and how many of its threads that lets run.

    python -m polaris_kernels.backends.resources [--json] [--only rows|delta]

prints it for every kernel and architecture, Triton's and CUDA's, without a GPU.
"""

import argparse
import json
import os
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

_WARP = 32
_REGISTERS = 65_536  # of a multiprocessor, 80 to 100
_REGISTER_UNIT = 256  # a warp gets multiples of it
_MAX_WARPS = 64
_MAX_BLOCKS = 32
# of a multiprocessor, in bytes, and what each block loses of it
_SHARED = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
_SHARED_RESERVED = 1024
_COLUMNS = ("kernel", "arch", "registers", "spills", "shared", "warps", "blocks", "occupancy")


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
    """static and dynamic, a block"""
    num_warps: int
    """a block"""

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor holds at a time."""
        of_a_warp = -(-self.registers * _WARP // _REGISTER_UNIT) * _REGISTER_UNIT
        shared = self.shared_bytes + _SHARED_RESERVED
        return min(
            _REGISTERS // max(of_a_warp * self.num_warps, 1),
            _SHARED[self.arch] // shared,
            _MAX_WARPS // self.num_warps,
            _MAX_BLOCKS,
        )

    @property
    def occupancy(self) -> float:
        """Share of the multiprocessor's warps."""
        return self.blocks * self.num_warps / _MAX_WARPS


def table(reports: list[KernelReport]) -> str:
    """The reports as text, one line a kernel and an architecture."""
    widths = (52, 6, 9, 6, 7, 5, 6, 9)
    lines = [_COLUMNS] + [
        (
            r.name, f"sm_{r.arch}", str(r.registers), str(r.spill_bytes), str(r.shared_bytes),
            str(r.num_warps), str(r.blocks), f"{r.occupancy:.0%}",
        )
        for r in reports
    ]  # fmt: skip
    return "\n".join(
        " ".join(
            [f"{name:<{widths[0]}}", *(f"{x:>{w}}" for x, w in zip(rest, widths[1:], strict=True))]
        )
        for name, *rest in lines
    )


def cuobjdump() -> Path:
    """The disassembler that Triton brings along."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def resource_usage(path: str | Path) -> str:
    """What cuobjdump prints of a cubin, or of a library that embeds some."""
    command = [str(cuobjdump()), "-res-usage", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def number(text: str, key: str) -> int:
    """The value of `key:` in cuobjdump's output."""
    found = re.search(rf"\b{key}:(\d+)", text)
    if found is None:
        raise RuntimeError(f"kernel report: cuobjdump printed no {key}: in\n{text}")
    return int(found.group(1))


def own_shared(text: str, arch: int) -> int:
    """Static shared memory of a kernel; from sm_90 on cubins list the reserved part with it."""
    return max(0, number(text, "SHARED") - (_SHARED_RESERVED if arch >= 90 else 0))


def main() -> None:
    """Print the table, or JSON for a program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    parser.add_argument("--only", choices=("rows", "delta"), help="the head's kernels, or the rest")
    arguments = parser.parse_args()
    # the interpreter compiles nothing; Triton reads this when it is imported
    os.environ.pop("TRITON_INTERPRET", None)
    from ..gated_delta import report as delta_report
    from . import cuda_library, cuda_report, triton_report

    reports = triton_report.report() if arguments.only != "delta" else []
    if cuda_library.PATH.exists() and arguments.only != "delta":
        reports += cuda_report.report()
    if arguments.only != "rows":
        reports += delta_report.report()
    if arguments.json:
        extra = [asdict(r) | {"blocks": r.blocks, "occupancy": r.occupancy} for r in reports]
        print(json.dumps(extra))
        return
    print(table(reports))
    if not cuda_library.PATH.exists():
        print(f"no CUDA kernels: {cuda_library.PATH.name} is missing; {cuda_library.REBUILD}")


if __name__ == "__main__":
    main()
