"""Buckets, allowances and dollars: what they let through never passes their limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_fast.judge.flow.allowance import Allowance
from polaris_fast.judge.flow.buckets import Bucket
from polaris_fast.judge.flow.cost import CostBudget, Verdict


@given(
    st.lists(st.tuples(st.floats(0, 20), st.integers(1, 300)), min_size=1, max_size=60),
    st.integers(30, 6000),
)
def test_no_minute_sees_more_than_the_limit_and_one_burst(calls, per_minute) -> None:
    bucket, now, sent = Bucket(per_minute, 0.0), 0.0, []
    for pause_s, amount in calls:
        now += pause_s
        sent.append((now + bucket.take(amount, now), amount))
    largest = max(amount for _, amount in sent)
    burst = max(1.0, per_minute / 60) + largest
    for begin, _ in sent:
        within = sum(amount for at, amount in sent if begin <= at < begin + 60)
        assert within <= per_minute + burst + 1e-6


def test_a_bucket_paces_evenly_in_order() -> None:
    bucket = Bucket(60, 0.0)  # one a second
    assert [round(bucket.take(1, 0.0), 6) for _ in range(4)] == [0, 1, 2, 3]
    assert bucket.take(1, 10.0) == 0


def test_an_estimate_that_was_too_high_is_given_back() -> None:
    bucket = Bucket(6000, 0.0)  # 100 a second
    assert bucket.take(1000, 0.0) == 0  # full: goes into debt by 900
    assert bucket.take(100, 0.0) == pytest.approx(10.0)
    bucket.correct(1000, 100)
    bucket.correct(100, 0)
    assert bucket.take(50, 0.0) == pytest.approx(0.5)
    bucket.correct(50, 250)  # too low: the rest is taken
    assert bucket.take(10, 0.5) == pytest.approx(2.1)


def test_a_bucket_needs_a_rate() -> None:
    with pytest.raises(ValueError, match="per_minute must be positive, got 0"):
        Bucket(0, 0.0)


@given(st.floats(0, 1), st.integers(0, 20), st.lists(st.booleans(), max_size=300))
def test_extra_calls_stay_under_their_share(share, start, events) -> None:
    allowance = Allowance(share, start=start)
    first = extra = 0
    for is_first in events:
        if is_first:
            allowance.earn()
            first += 1
        else:
            extra += allowance.spend()
    assert extra <= start + share * first + 1e-6
    assert allowance.left >= -1e-6


def test_a_short_run_may_retry_and_a_good_hour_is_not_saved_up() -> None:
    allowance = Allowance(0.2, start=10)
    assert sum(allowance.spend() for _ in range(50)) == 10
    for _ in range(5):
        allowance.earn()
    assert sum(allowance.spend() for _ in range(50)) == 1
    for _ in range(100_000):
        allowance.earn()
    assert sum(allowance.spend() for _ in range(10_000)) == 200


def test_no_share_allows_nothing() -> None:
    allowance = Allowance(0.0, start=10)
    allowance.earn()
    assert not allowance.spend()


@given(
    st.floats(0.1, 5),
    st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1), st.booleans()), max_size=80),
)
def test_spending_never_passes_the_budget(limit_usd, calls) -> None:
    budget = CostBudget(limit_usd)
    under_way: list[tuple[float, float]] = []
    for bound, share, ends in calls:
        verdict = budget.reserve(bound)
        if verdict is Verdict.GO:
            under_way.append((bound, bound * share))
        if verdict is Verdict.WAIT:
            assert under_way  # there is something to wait for
        if ends and under_way:
            budget.settle(*under_way.pop(0))
    for bound, cost in under_way:
        budget.settle(bound, cost)
    assert budget.spent_usd <= limit_usd + 1e-9


def test_a_call_waits_for_those_under_way_and_stops_when_there_are_none() -> None:
    budget = CostBudget(1.0)
    assert budget.reserve(0.6) is Verdict.GO
    assert budget.reserve(0.6) is Verdict.WAIT
    budget.settle(0.6, 0.1)
    assert budget.reserve(0.6) is Verdict.GO
    budget.settle(0.6, 0.5)
    assert budget.reserve(0.6) is Verdict.STOP
    assert "judge.max_cost_usd" in budget.message(0.6)
    assert CostBudget(None).reserve(1e9) is Verdict.GO
