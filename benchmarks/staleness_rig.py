"""Seconds a step takes, with batches written ahead of training or not, on any rollout engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from benchmarks.overlap_rig import GROUPS, Rig, judge, record
from benchmarks.scripted_endpoint import Latency
from polaris_fast.step import StepResult
from polaris_fast.writing_ahead import WritingAhead

HUMAN_WEIGHT = 0.4


@dataclass(frozen=True)
class Measured:
    """Mean seconds of a step, all in all and of its parts, which may overlap."""

    step_s: float
    writing_s: float
    training_s: float


def measure(rig: Rig, max_staleness: int, latency: Latency, num_steps: int) -> Measured:
    """Over `num_steps` steps, after one that writes the first batches.

    Weights reach the rollout engine before each.
    """
    first, last = rig.steps_done, rig.steps_done + num_steps
    rig.steps_done = last + 1
    with judge(latency, rig.config) as (pool, _):
        step = rig.make_step(pool)
        if max_staleness == 0:

            def run_step(number: int) -> StepResult:
                rig.rollouts.sync(number, lambda: None)
                return step.run(number, HUMAN_WEIGHT, lambda n: record(number, n))

            return _timed(run_step, first, last)
        ahead = WritingAhead(
            step.writer,
            rig.rollouts,
            lambda number: ([record(number, n) for n in range(GROUPS)], HUMAN_WEIGHT),
            first_step=first,
            total_steps=last + 1 + max_staleness,  # the last timed step trains beside writing, too
            max_staleness=max_staleness,
            in_step=False,
            check_stop=lambda: None,
        )

        def train(number: int) -> StepResult:
            ahead.sync(number)
            return step.train(lambda: ahead.take(number))

        with ahead:
            return _timed(train, first, last)


def _timed(run_step: Callable[[int], StepResult], first: int, last: int) -> Measured:
    run_step(first)
    begun = time.perf_counter()
    results = [run_step(number) for number in range(first + 1, last + 1)]
    return Measured(
        step_s=(time.perf_counter() - begun) / len(results),
        writing_s=fmean(r.generation_s for r in results),
        training_s=fmean(r.clock.seconds("train") for r in results),
    )
