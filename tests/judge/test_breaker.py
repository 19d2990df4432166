"""The breaker opens when the judge is down, probes ever less often, and gives up in the end."""

from __future__ import annotations

from polaris_fast.judge.faults import FaultKind
from polaris_fast.judge.flow.breaker import Breaker, BreakerState, BreakerTimes

TIMES = BreakerTimes(window_s=60, pause_s=5, max_pause_s=30, patience_s=100)


def fail(breaker: Breaker, num: int, now: float) -> None:
    for _ in range(num):
        breaker.failed(now, FaultKind.TRANSIENT, "HTTP 503")


def test_it_opens_when_half_of_enough_recent_answers_failed() -> None:
    breaker = Breaker(TIMES)
    for _ in range(11):
        breaker.succeeded(0)
    fail(breaker, 10, 1)
    assert breaker.state is BreakerState.CLOSED  # 10 of 21
    fail(breaker, 1, 1)
    assert breaker.state is BreakerState.OPEN
    assert "11 of the last 22 requests failed (HTTP 503)" in breaker.reason


def test_a_few_failures_say_nothing() -> None:
    breaker = Breaker(TIMES)
    fail(breaker, 19, 0)
    assert breaker.state is BreakerState.CLOSED
    fail(breaker, 19, 61)  # the first ones are forgotten by now
    assert breaker.state is BreakerState.CLOSED
    fail(breaker, 1, 62)
    assert breaker.state is BreakerState.OPEN


def test_quick_failures_beside_slow_answers_are_no_outage() -> None:
    breaker = Breaker(TIMES)
    for _ in range(59):
        breaker.failed(0, FaultKind.TRANSIENT, "HTTP 503", under_way=60)
    assert breaker.state is BreakerState.CLOSED
    breaker.failed(0, FaultKind.TRANSIENT, "HTTP 503", under_way=60)
    assert breaker.state is BreakerState.OPEN


def test_a_quota_or_key_fault_opens_it_at_once() -> None:
    breaker = Breaker(TIMES)
    breaker.trip(0, FaultKind.QUOTA, "no credit")
    assert (breaker.state, breaker.kind, breaker.reason) == (
        BreakerState.OPEN, FaultKind.QUOTA, "no credit",
    )  # fmt: skip
    breaker.trip(1, FaultKind.AUTH, "later")
    assert (breaker.reason, breaker.num_opened) == ("no credit", 1)


def test_probes_come_after_growing_pauses_until_patience_ends() -> None:
    breaker, now, at = Breaker(TIMES), 0.0, []
    breaker.trip(now, FaultKind.QUOTA, "no credit")
    while breaker.state is BreakerState.OPEN:
        now += breaker.next_probe_s(now)
        at.append(now)
        breaker.probe_failed(now, FaultKind.TRANSIENT, "HTTP 500")
    assert at == [5, 15, 35, 65, 95, 100]
    assert breaker.state is BreakerState.GIVEN_UP
    assert (breaker.kind, breaker.reason) == (FaultKind.TRANSIENT, "HTTP 500")
    assert breaker.open_s(now) == 100


def test_a_good_probe_closes_it_and_the_past_is_forgotten() -> None:
    breaker = Breaker(TIMES)
    fail(breaker, 20, 0)
    breaker.probe_succeeded()
    fail(breaker, 19, 1)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.open_s(1) == 0
    fail(breaker, 1, 1)
    assert breaker.num_opened == 2
    assert breaker.next_probe_s(1) == 5  # the pause starts anew
