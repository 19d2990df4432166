"""The CUDA row kernels on a CPU: their own source, compiled by the host's compiler against a header
that plays the chip (cuda_on_cpu/device.h), behind the calls of `CudaLibrary`."""

import ctypes
import importlib.util
import subprocess
from pathlib import Path

import pytest
import torch

from polaris_kernels.backends import cuda_library
from polaris_kernels.backends.cuda_library import CudaLibrary

CSRC = Path(__file__).resolve().parents[2] / "csrc"
_HERE = Path(__file__).resolve().parent / "cuda_on_cpu"


def csrc_build():
    """The module csrc/build.py."""
    if not CSRC.is_dir():
        pytest.skip("no checkout: the sources of the kernels are not installed")
    spec = importlib.util.spec_from_file_location("csrc_build", CSRC / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_emulator(folder: Path) -> ctypes.CDLL:
    """The kernels for this CPU; skips where there is no compiler."""
    build = csrc_build()
    try:
        compiler = build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    target = folder / "emulator.so"
    flags = "-std=c++17 -O1 -Wall -Wno-unknown-pragmas -ffp-contract=off -fPIC -shared"
    sources = ["-I", str(_HERE), "-I", str(CSRC / "cuda"), str(_HERE / "emulator.cpp")]
    command = [*compiler, *flags.split(), *sources, "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # no message: no warning either
    assert not done.stderr, done.stderr
    library = ctypes.CDLL(str(target))
    library.emulate_statistics.restype = ctypes.c_char_p
    library.emulate_gradient.restype = ctypes.c_char_p
    return library


class Emulator(CudaLibrary):
    """`CudaLibrary` on CPU tensors.

    Args:
        threads: of a block, a multiple of 32.
        order: in which order threads run between barriers: 0 ascending, 1 descending, else a seed.
        cluster: blocks that share a row where the caller leaves the choice; 0: two kernels.
    """

    def __init__(self, library: ctypes.CDLL, threads: int = 32, order: int = 0, cluster: int = 2):
        self._library = library
        self.threads, self.order, self.cluster = threads, order, cluster
        self.calls: list[str] = []

    def statistics(self, logits, state):
        self.calls.append("statistics")
        self._run("emulate_statistics", logits, state, self.threads, self.order)

    def gradient(self, logits, state, rule, out):
        self.calls.append("gradient")
        self._run("emulate_gradient", logits, state, rule, out, 0, self.threads, self.order)

    def row_pass(self, logits, state, rule, out, cluster):
        cluster = cluster or self.cluster
        if cluster <= 0:
            self.statistics(logits, state)
            self.gradient(logits, state, rule, out)
            return
        self.calls.append("row_pass")
        self._run("emulate_gradient", logits, state, rule, out, cluster, self.threads, self.order)

    def _run(self, name, *arguments):
        given = [x if isinstance(x, int) else ctypes.byref(x) for x in arguments]
        fault = getattr(self._library, name)(*given)
        assert fault is None, f"{name}: {fault.decode()}"


def aligned(C: int, V: int, dtype: torch.dtype, extra: int = 0) -> torch.Tensor:
    """(C, V) of nan rows that start at multiples of 16 bytes, more nan behind each."""
    width = -(-(V + extra) // 8) * 8
    memory = torch.full((C * width + 16,), torch.nan, dtype=dtype)
    start = -(memory.data_ptr() // memory.element_size()) % (16 // memory.element_size())
    rows = memory[start : start + C * width].view(C, width)[:, :V]
    assert cuda_library.takes(rows)
    return rows
