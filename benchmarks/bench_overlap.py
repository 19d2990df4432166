"""How much of the judge's time hides behind writing and training, against the best possible.

    pytest benchmarks/bench_overlap.py --benchmark-only -s

48 rows in 8 groups; judge latency, sigma and generation vary (see `overlap_rig`, `overlap_bound`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from benchmarks.overlap_bound import StepTimes, times_of
from benchmarks.overlap_rig import Rig, Setting
from benchmarks.result_table import Table
from polaris_fast.collector import setup_spared

STEPS = 3
MAX_OVER_BOUND, MAX_HIDDEN_GAP = 1.10, 0.05
SETTINGS = [
    Setting(median, sigma, generation, fixed_order)
    for fixed_order, generation, sigma, median in product(
        (False, True), (0.0, 2.0), (0.3, 0.8), (0.5, 1.0, 2.0)
    )
]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """With the collector as a run has it."""
    found = Rig()
    with setup_spared():
        yield found


@pytest.fixture(scope="module")
def training_s(rig: Rig) -> float:
    return rig.training_s()


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """Printed and kept when all settings are done."""
    columns = ("order", "writing", "sigma", "judge", "training s", "bound s", "ours s")
    columns += ("ours / bound", "worst step", "sequential s", "hidden", "bound hides")
    title = "Seconds a step; writing and the judge's median latency in training phases"
    found = Table("overlap", title, columns, num_keys=4)
    yield found
    found.finish()


def _name(setting: Setting) -> str:
    order = "fixed" if setting.fixed_order else "earliest"
    numbers = f"writing{setting.generation:g}-sigma{setting.sigma:g}-judge{setting.median:g}"
    return f"{order}-{numbers}"


@pytest.mark.parametrize("setting", SETTINGS, ids=_name)
def test_judge_overlap(
    benchmark: Any, rig: Rig, training_s: float, table: Table, setting: Setting
) -> None:
    steps, script = benchmark.pedantic(rig.run, args=(setting, training_s, STEPS), rounds=1)
    times = [
        times_of(
            step, lambda story: script.attempt(story, 0).latency_s, fixed_order=setting.fixed_order
        )
        for step in steps
    ]
    mean = StepTimes(
        *(sum(getattr(t, f) for t in times) / STEPS for f in StepTimes.__annotations__)
    )
    table.add(
        "fixed" if setting.fixed_order else "earliest",
        f"{setting.generation:g}x",
        setting.sigma,
        f"{setting.median:g}x",
        round(training_s, 3),
        round(mean.bound, 3),
        round(mean.overlapped, 3),
        round(mean.overlapped / mean.bound, 3),
        round(max(t.overlapped / t.bound for t in times), 3),
        round(mean.sequential, 3),
        f"{mean.hidden_share:.1%}",
        f"{mean.bound_hidden_share:.1%}",
    )
    benchmark.extra_info.update(vars(setting), **vars(mean))
    for t in times:
        assert t.overlapped <= MAX_OVER_BOUND * t.bound
    assert abs(mean.hidden_share - mean.bound_hidden_share) <= MAX_HIDDEN_GAP
