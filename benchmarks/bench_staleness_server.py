"""Steps per hour with batches written ahead, on a real vLLM server that shares this machine.

    OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest benchmarks/bench_staleness_server.py \\
        --benchmark-only -s

A tiny Qwen3 in fp32 on a server beside the trainer, steps of 48 rows in 8 groups, a scripted judge
that answers at once. Both arms take turns, each twice; a number is the mean of its turns. Trainer
and server take `threads` CPU cores each: where that is all the machine has, writing and training
slow each other down, which GPUs of their own would not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from benchmarks.overlap_rig import Rig
from benchmarks.result_table import Table
from benchmarks.scripted_endpoint import Latency
from benchmarks.staleness_rig import Measured, measure

STEPS, TURNS = 3, 2
pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None,
    reason="needs vLLM: make test-vllm, then .venv-vllm/bin/python -m pytest "
    "benchmarks/bench_staleness_server.py --benchmark-only -s",
)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """With a launched server for its rollouts."""
    from polaris_fast.model.lora import whole_state
    from polaris_fast.rollout.vllm.engine import open_vllm
    from polaris_fast.rollout.vllm.fleet import Fleet

    found = Rig(family="qwen3")
    found.training_s()  # warms up
    found.model.save_pretrained(tmp_path)
    with Fleet(found.config, str(tmp_path), log_dir=tmp_path, backend="gloo") as fleet:
        found.rollouts = open_vllm(
            found.config, fleet, lambda: whole_state(found.model), torch.device("cpu")
        )
        found.rollouts.sync(0, lambda: None)
        yield found


def test_writing_ahead_on_a_server(benchmark: Any, rig: Rig) -> None:
    columns = ("cores", "threads", "staleness", "writing s", "training s", "step s", "gain")
    title = "Seconds a step on a real vLLM server beside the trainer"
    table = Table("staleness_server", title, columns, num_keys=3)

    def compare() -> dict[int, list[Measured]]:
        found: dict[int, list[Measured]] = {0: [], 1: []}
        for _ in range(TURNS):
            for staleness, turns in found.items():
                turns.append(measure(rig, staleness, Latency(), STEPS))
        return found

    found = benchmark.pedantic(compare, rounds=1)
    serial_s = fmean(turn.step_s for turn in found[0])
    for staleness, turns in found.items():
        names = ("writing_s", "training_s", "step_s")
        means = [fmean(getattr(turn, name) for turn in turns) for name in names]
        times = (round(s, 2) for s in means)
        threads = torch.get_num_threads()
        table.add(os.cpu_count(), threads, staleness, *times, f"{serial_s / means[-1]:.2f}x")
    table.finish()
