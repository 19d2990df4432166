"""Every row kernel compiled ahead of time: no spills, and no compile for a new length.

Triton chooses its interpreter when it is imported, so the compiler runs in processes of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import polaris_kernels
from polaris_kernels.backends import cuda_library

pytest.importorskip("triton")

# Twenty lengths and temperatures through the public functions, on a driver that only compiles.
COUNT = """
import torch
from polaris_kernels import LossRows, LossSpec, linear_grpo_loss, linear_logps
from polaris_kernels.backends import triton_chunked
from polaris_kernels.backends.triton_report import compiling_for

triton_chunked.check_device = lambda device: None
weight = torch.zeros(1000, 8, requires_grad=True)
counts = []
with compiling_for(90) as kernels:
    for i in range(20):
        N = 1 + 7 * i
        hidden, targets = torch.zeros(N, 8), torch.zeros(N, dtype=torch.long)
        rows = LossRows(row_of_token=targets, num_rows=1, advantages=torch.ones(1))
        linear_grpo_loss(
            hidden, weight, targets, rows=rows, spec=LossSpec(), temperature=0.5 + 0.1 * i,
            chunk_bytes=1008 * 4 * (5 + i), backend="triton",
        )
        counts.append(len({id(kernel) for kernel in kernels}))
print(len(kernels), counts[0], counts[-1])
"""


def run(*command: str, cache: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": str(Path(polaris_kernels.__file__).parent.parent),
        "TRITON_CACHE_DIR": str(cache),
    }
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cache = tmp_path_factory.mktemp("triton")
    out = run("-m", "polaris_kernels.backends.resources", "--json", "--only", "rows", cache=cache)
    found: list[dict[str, Any]] = json.loads(out)
    return found


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_no_kernel_spills(reports, arch):
    mine = [r for r in reports if r["arch"] == arch and r["name"].startswith("triton")]
    assert len(mine) >= 9
    for r in mine:
        assert r["spill_bytes"] == 0, r
        # four programs of four warps fit the register file of a multiprocessor
        assert r["registers"] <= 128, r
        # rows never go through shared memory: only what reductions exchange between warps
        assert r["shared_bytes"] <= 2_048, r


def test_the_cuda_library_is_in_the_report_without_spills(reports):
    if not cuda_library.PATH.exists():
        pytest.skip(f"no {cuda_library.PATH.name}: {cuda_library.REBUILD}")
    for arch in (80, 90):
        mine = [r for r in reports if r["arch"] == arch and r["name"].startswith("cuda")]
        assert len(mine) == 16
        assert all(r["spill_bytes"] == 0 and r["blocks"] >= 1 for r in mine)
    blocks = {r["name"]: r["blocks"] for r in reports if r["arch"] == 90}
    assert blocks["cuda pass bf16->bf16 V 248320 over 8"] == 3
    assert blocks["cuda pass fp32->bf16 V 248320 over 8"] == 1


def test_new_lengths_and_temperatures_compile_nothing(tmp_path):
    launches, first, last = (int(n) for n in run("-c", COUNT, cache=tmp_path).split())
    assert launches > 100
    assert (first, last) == (2, 2)


def test_a_profiler_is_told_operations_and_bytes():
    from polaris_kernels.backends import triton_rows

    logits, out = torch.empty(3, 10), torch.empty(3, 10, dtype=torch.bfloat16)
    arguments = {"V": 10, "logits_ptr": logits, "out_ptr": out}
    kernel = SimpleNamespace(name="row_kernel")
    read = triton_rows._statistics_work((3,), kernel, arguments)
    moved = triton_rows._gradient_work((3,), kernel, arguments)
    assert (read["bytes"], moved["bytes"]) == (3 * 10 * 4, 3 * 10 * 6)
    assert read["flops"] > 0 and moved["flops"] > 0 and "V10" in read["name"]
