"""How long two ranks wait for each other: measured on two processes, beside the simulation.

    pytest benchmarks/bench_balance.py --benchmark-only -s

Tiny Qwen3.5, the recipes' lengths and micro-batches divided by 16, gloo; a core for each rank.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.result_table import Table

RANKS = 2
MOST_IDLE = 0.05


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    each = (f"rank {rank} waits" for rank in range(RANKS))
    columns = ("recipe", "rounds", *each, "all wait", "simulated")
    found = Table(
        "balance", f"Share of its time in training that each of {RANKS} ranks waits", columns
    )
    yield found
    found.finish()


@pytest.mark.parametrize("recipe", ["polaris_9b", "polaris_9b_12k"])
def test_two_ranks_hardly_wait(benchmark: Any, table: Table, recipe: str) -> None:
    found = benchmark.pedantic(_measured, (recipe,), rounds=1)
    shares = (*found["idle_by_rank"], found["idle"], found["simulated"])
    table.add(recipe, found["rounds"], *(f"{share:.1%}" for share in shares))
    benchmark.extra_info.update(found)
    assert found["idle"] <= MOST_IDLE


def _measured(recipe: str) -> dict[str, Any]:
    """What rank 0 printed. RuntimeError with the end of the output when the launch failed."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={RANKS}"]
    command += ["--standalone", "-m", "benchmarks.balance_ranks", "--recipe", recipe]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{recipe}: status {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
