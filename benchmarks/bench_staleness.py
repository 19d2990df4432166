"""Steps per hour with batches written ahead (`rollout.max_staleness` 1 and 2) against none.

    pytest benchmarks/bench_staleness.py --benchmark-only -s

Real steps of 48 rows in 8 groups; the rollout engine and the judge take scripted times, given in
training phases (see `overlap_rig`). Weights take a tenth of a training phase to reach the servers.
`bound` is the longer of writing and training, with the weights' time: no step can be shorter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest

from benchmarks.judge_table import Table
from benchmarks.overlap_rig import GROUPS, Latency, PacedRollouts, Rig, judge, record
from polaris_fast.pipeline import Pipeline

STEPS, SYNC = 6, 0.1  # timed steps; share of a training phase
SETTINGS = list(product((1.0, 2.0), (0.5, 1.0)))  # writing, the judge's median latency
MIN_GAIN = 1.5


class PacedServers(PacedRollouts):
    """Paced rollouts whose weights take time to arrive."""

    sync_s = 0.0

    def sync(self, version: int, check_stop: Callable[[], None]) -> None:
        time.sleep(self.sync_s)

    def mend(self, version: int, check_stop: Callable[[], None]) -> None:
        """Nothing can be lost."""


@pytest.fixture(scope="module")
def rig() -> Rig:
    return Rig(PacedServers())


@pytest.fixture(scope="module")
def training_s(rig: Rig) -> float:
    return rig.training_s()


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    columns = ("writing", "judge", "training s", "bound s", "staleness 0 s", "1 s", "2 s")
    columns += ("1 against 0", "2 against 0")
    title = "Seconds a step; writing and the judge's median latency in training phases"
    found = Table("staleness", title, columns, num_keys=2)
    yield found
    found.finish()


def seconds_a_step(rig: Rig, max_staleness: int, median_s: float) -> float:
    """Over `STEPS` steps, once the pipeline is filled."""
    servers, first = rig.rollouts, rig.steps_done
    assert isinstance(servers, PacedServers)
    with judge(Latency(median_s, 0.3), rig.config) as (pool, _):
        if max_staleness == 0:

            def run_step(number: int) -> None:
                servers.sync(number, lambda: None)
                rig.step(pool)

            return _timed(run_step, first)
        step = rig.make_step(pool)
        pipeline = Pipeline(
            step.writer,
            servers,
            lambda number: ([record(number, n) for n in range(GROUPS)], 0.4),
            first_step=first,
            total_steps=first + 1 + STEPS,
            max_staleness=max_staleness,
            in_step=False,
            check_stop=lambda: None,
        )

        def train(number: int) -> None:
            pipeline.sync(number)
            step.train(lambda: pipeline.take(number))

        with pipeline:
            return _timed(train, first)


def _timed(run_step: Callable[[int], None], first: int) -> float:
    run_step(first)
    begun = time.perf_counter()
    for number in range(first + 1, first + 1 + STEPS):
        run_step(number)
    return (time.perf_counter() - begun) / STEPS


@pytest.mark.parametrize(("writing", "median"), SETTINGS)
def test_writing_ahead(
    benchmark: Any, rig: Rig, training_s: float, table: Table, writing: float, median: float
) -> None:
    servers = rig.rollouts
    assert isinstance(servers, PacedServers)
    servers.seconds, servers.sync_s = writing * training_s, SYNC * training_s

    def compare() -> list[float]:
        found = []
        for max_staleness in (0, 1, 2):
            found.append(seconds_a_step(rig, max_staleness, median * training_s))
            rig.steps_done += 1 + STEPS
        return found

    serial, one, two = benchmark.pedantic(compare, rounds=1)
    bound = (max(writing, 1.0) + SYNC) * training_s
    times = (round(s, 3) for s in (training_s, bound, serial, one, two))
    gains = (f"{serial / one:.2f}x", f"{serial / two:.2f}x")
    table.add(f"{writing:g}x", f"{median:g}x", *times, *gains)
    benchmark.extra_info.update(serial_s=serial, one_s=one, two_s=two, bound_s=bound)
    assert serial / one >= MIN_GAIN
