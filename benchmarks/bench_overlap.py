"""How much of the judge's time hides behind training, against the best that the trace allows.

    pytest benchmarks/bench_overlap.py --benchmark-only -s

The bound of a step replays its own trace: rows were sent when they were sent, each is scored after
its scripted latency, groups train for as long as they trained, in the order rule's best order.
Sequential is the same trace with training held until the last score.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scripted_judge import Latency, scripted_judge, uniform_latency
from polaris_fast.config_file import load_config
from polaris_fast.progress import make_view
from polaris_fast.step import StepResult
from polaris_fast.stopping import StopFlag
from polaris_fast.trainer import Trainer

STEPS, LOW_S, HIGH_S = 6, 0.5, 3.0
MAX_OVER_BOUND = 1.15


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one step: as it ran, its bound, and without overlap."""

    overlapped: float
    bound: float
    sequential: float


class Recorder(Trainer):
    """A run that keeps its steps' results."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.results: list[StepResult] = []

    def _finish_step(self, result: StepResult) -> None:
        self.results.append(result)
        super()._finish_step(result)


@pytest.mark.parametrize("order", ["earliest_ready", "fixed_order"])
def test_judge_overlap(benchmark: Any, tmp_path: Path, order: str) -> None:
    latency = uniform_latency(LOW_S, HIGH_S)
    recorder = benchmark.pedantic(_train, args=(tmp_path, latency, order), rounds=1)
    steps = [times_of(r, latency, fixed=order == "fixed_order") for r in recorder.results]
    total = StepTimes(*(sum(getattr(s, f) for s in steps) for f in StepTimes.__annotations__))
    benchmark.extra_info.update(
        order=order,
        steps=len(steps),
        bound_s=total.bound,
        overlapped_s=total.overlapped,
        sequential_s=total.sequential,
        overlapped_over_bound=total.overlapped / total.bound,
        sequential_over_overlapped=total.sequential / total.overlapped,
    )
    assert total.overlapped <= MAX_OVER_BOUND * total.bound
    print(
        f"\n{order}: a step's bound {total.bound / len(steps):.2f} s, overlapped "
        f"{total.overlapped / len(steps):.2f} s ({total.overlapped / total.bound:.2f}x the bound), "
        f"sequential {total.sequential / len(steps):.2f} s"
    )


def _train(folder: Path, latency: Latency, order: str) -> Recorder:
    with scripted_judge(latency) as base_url:
        config = load_config(
            None,
            {
                "output_dir": str(folder / "run"),
                "max_steps": str(STEPS),
                "deterministic": str(order == "fixed_order"),
                "judge.base_url": base_url,
                "judge.max_concurrency": "64",
                "hri.num_judge_samples": "1",
                "report_to": "[]",
                "eval_on_start": "false",
                "eval_on_end": "false",
                "progress": "false",
            },
        )
        recorder = Recorder(config, make_view(False), StopFlag())
        recorder.run()
    return recorder


def times_of(result: StepResult, latency: Latency, *, fixed: bool) -> StepTimes:
    """The step's own time, and what its trace allows."""
    when = {(kind, what): t for t, kind, what in result.trace}
    start, end, wrote = (
        when[key] for key in (("step", "start"), ("step", "end"), ("rollout", "end"))
    )
    scored = {}
    for row in result.rows:
        sent, arrived = (when[("row", f"{x} {row.row_id}")] for x in ("sent", "scored"))
        asked = row.outcome is not None and getattr(row.outcome, "judge", "") != "empty story"
        # A human story judged in an earlier step is answered at once.
        fresh = asked and arrived - sent >= LOW_S / 2
        scored[row.row_id] = sent + (latency(row.story) if fresh else 0.0)
    ready = {g.index: max(scored[r.row_id] for r in g.rows) for g in result.groups}
    train = {
        g.index: when[("train", f"end {g.index}")] - when[("train", f"start {g.index}")]
        for g in result.groups
    }
    after = end - max(when[("train", f"end {g.index}")] for g in result.groups)
    order = sorted(ready) if fixed else sorted(ready, key=lambda g: ready[g])
    bound = _play(((ready[g], train[g]) for g in order), wrote)
    last = max(ready.values())
    sequential = _play(((last, train[g]) for g in order), wrote)
    return StepTimes(end - start, bound - start + after, sequential - start + after)


def _play(groups: Iterable[tuple[float, float]], now: float) -> float:
    """When the last group is done, each starting once it is ready and the one before is done."""
    for ready, seconds in groups:
        now = max(now, ready) + seconds
    return now
