"""Which faults are tried again, how often, and how long the wait is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_fast.judge.faults import FaultKind, JudgeFault
from polaris_fast.judge.retry import Backoff, Deadline, TryCount, retrying
from polaris_fast.judge.sketch import percentile


def allowed(kind: FaultKind, max_attempts: int) -> int:
    """Tries in all when each ends in the same fault; 50 stands for no end."""
    tries = TryCount(max_attempts)
    num_tries = 1
    while num_tries < 50 and tries.may_retry(JudgeFault(kind, "x")):
        num_tries += 1
    return num_tries


@pytest.mark.parametrize(
    ("kind", "max_attempts", "num_tries"),
    [
        (FaultKind.THROTTLE, 1, 50),
        (FaultKind.TRANSIENT, 4, 4),
        (FaultKind.TIMEOUT, 4, 4),
        (FaultKind.TRUNCATED, 9, 2),
        (FaultKind.TRUNCATED, 1, 1),
        (FaultKind.INVALID, 9, 3),
        (FaultKind.INVALID, 2, 2),
        (FaultKind.REFUSAL, 9, 2),
        (FaultKind.REFUSAL, 1, 1),
        (FaultKind.INCONSISTENT, 9, 2),
        (FaultKind.QUOTA, 1, 3),
        (FaultKind.AUTH, 1, 3),
        (FaultKind.BUDGET, 9, 1),
        (FaultKind.TOO_LONG, 9, 1),
        (FaultKind.REQUEST, 9, 1),
    ],
)
def test_number_of_tries(kind, max_attempts, num_tries):
    assert allowed(kind, max_attempts) == num_tries


def test_other_exceptions_are_not_retried():
    assert not TryCount(9).may_retry(ValueError())


@given(st.lists(st.sampled_from(FaultKind), max_size=30), st.integers(1, 6))
def test_tries_that_count_never_exceed_the_limit(kinds, max_attempts):
    tries = TryCount(max_attempts)
    for kind in kinds:
        if not tries.may_retry(JudgeFault(kind, "x")):
            break
    assert tries.tries_used <= max_attempts


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waits_s: list[float] = []

    async def sleep(self, wait_s: float) -> None:
        self.waits_s.append(wait_s)
        self.now_s += wait_s


async def play(fault: JudgeFault, *, max_attempts: int, deadline_s: float) -> Clock:
    clock = Clock()
    loop = retrying(
        TryCount(max_attempts),
        Backoff(base_s=1.0, max_s=8.0),
        deadline=Deadline(deadline_s),
        before_sleep=lambda state: None,
        clock=lambda: clock.now_s,
    )
    loop.sleep = clock.sleep
    with pytest.raises(JudgeFault) as caught:
        async for attempt in loop:
            with attempt:
                raise fault
    assert caught.value is fault
    return clock


async def test_full_jitter_grows_to_its_cap():
    clock = await play(JudgeFault(FaultKind.TRANSIENT, "x"), max_attempts=40, deadline_s=1e9)
    assert len(clock.waits_s) == 39
    for n, wait_s in enumerate(clock.waits_s):
        assert 0 <= wait_s <= min(8.0, 2.0**n)
    assert max(clock.waits_s) > 4.0  # jitter reaches the upper half
    assert min(clock.waits_s[5:]) < 4.0  # and the lower


async def test_waits_are_at_least_what_is_asked_and_end_before_the_deadline():
    fault = JudgeFault(FaultKind.THROTTLE, "x", retry_after_s=10.0)
    clock = await play(fault, max_attempts=1, deadline_s=35.0)
    assert clock.waits_s == [10.0, 10.0, 10.0]


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([3.0], 50, 3.0), ([1.0, 2.0], 50, 1.0), ([1.0, 2.0, 3.0], 50, 2.0), ([1.0, 2.0], 99, 2.0)],
)
def test_percentile(values, percent, expected):
    assert percentile(values, percent) == expected
