"""The bound that judge overlap is measured against, on traces made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.overlap_bound import play, times_of

# Two groups of a row each: written at 2 s, judged in 6 s and 1 s, trained for 3 s, then .5 s more.
LATENCY_S = {"slow": 6.0, "quick": 1.0}


def result(train: list[tuple[int, float, float]], end: float) -> SimpleNamespace:
    """A step's result: `train` holds (group, start, end)."""
    rows = [SimpleNamespace(row_id=f"0/{i}/0", story=s) for i, s in enumerate(LATENCY_S)]
    groups = [SimpleNamespace(index=i, rows=[row]) for i, row in enumerate(rows)]
    trace = [(0.0, "step", "start"), (2.0, "rollout", "end"), (end, "step", "end")]
    trace += [(2.0, "row", f"sent {row.row_id}") for row in rows]
    for group, begin, done in train:
        trace += [(begin, "train", f"start {group}"), (done, "train", f"end {group}")]
    return SimpleNamespace(trace=trace, rows=rows, groups=groups)


def test_groups_wait_for_their_scores_and_for_each_other():
    assert play([(1.0, 3.0), (2.0, 3.0), (9.0, 1.0)], 0.0) == 10.0
    assert play([], 4.0) == 4.0


def test_a_step_that_does_its_best_meets_the_bound():
    best = result([(1, 3.0, 6.0), (0, 8.0, 11.0)], end=11.5)
    times = times_of(best, LATENCY_S.__getitem__, fixed_order=False)
    assert times.overlapped == times.bound == pytest.approx(11.5)
    assert times.sequential == pytest.approx(14.5)  # nothing trained before 8 s
    # Of 6 s of judging, 3 s were trained through; 1 s and 2 s were waited.
    assert times.judge == pytest.approx(6.0)
    assert times.hidden_share == times.bound_hidden_share == pytest.approx(0.5)


def test_a_step_that_waits_for_the_last_score_hides_nothing():
    late = result([(1, 8.0, 11.0), (0, 11.0, 14.0)], end=14.5)
    times = times_of(late, LATENCY_S.__getitem__, fixed_order=False)
    assert times.overlapped == times.sequential == pytest.approx(14.5)
    assert times.bound == pytest.approx(11.5)
    assert times.hidden_share == pytest.approx(0.0)
    assert times.bound_hidden_share == pytest.approx(0.5)


def test_in_fixed_order_the_slow_first_group_holds_the_second():
    in_order = result([(0, 8.0, 11.0), (1, 11.0, 14.0)], end=14.5)
    times = times_of(in_order, LATENCY_S.__getitem__, fixed_order=True)
    assert times.overlapped == times.bound == times.sequential == pytest.approx(14.5)
