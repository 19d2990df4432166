"""Steps per hour with batches written ahead (`rollout.max_staleness` 1 and 2) against none.

    pytest benchmarks/bench_staleness.py --benchmark-only -s

Real steps of 48 rows in 8 groups; the rollout engine and the judge take scripted times, given in
training phases (see `overlap_rig`). Weights take a tenth of a training phase to reach the servers.
`bound` is the longer of writing and of training with the weights' time: no step that is written
ahead can be shorter, so `at most` is the gain that an ideal overlap would show.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest

from benchmarks.overlap_rig import PacedRollouts, Rig
from benchmarks.result_table import Table
from benchmarks.scripted_endpoint import Latency
from benchmarks.staleness_rig import measure

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
    columns += ("1 against 0", "2 against 0", "at most")
    title = "Seconds a step; writing and the judge's median latency in training phases"
    found = Table("staleness", title, columns, num_keys=2)
    yield found
    found.finish()


@pytest.mark.parametrize(("writing", "median"), SETTINGS)
def test_writing_ahead(
    benchmark: Any, rig: Rig, training_s: float, table: Table, writing: float, median: float
) -> None:
    rig.rollouts.seconds, rig.rollouts.sync_s = writing * training_s, SYNC * training_s
    latency = Latency(median * training_s, 0.3)

    def compare() -> list[float]:
        return [measure(rig, staleness, latency, STEPS).step_s for staleness in (0, 1, 2)]

    serial, one, two = benchmark.pedantic(compare, rounds=1)
    bound = max(writing, 1.0 + SYNC) * training_s
    times = (round(s, 3) for s in (training_s, bound, serial, one, two))
    gains = (f"{serial / shorter:.2f}x" for shorter in (one, two, bound))
    table.add(f"{writing:g}x", f"{median:g}x", *times, *gains)
    benchmark.extra_info.update(serial_s=serial, one_s=one, two_s=two, bound_s=bound)
    assert serial / one >= MIN_GAIN
