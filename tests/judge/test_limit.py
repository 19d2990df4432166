"""How many requests are in flight: slow start, cuts, cooldown, and who goes first."""

from __future__ import annotations

import asyncio
import random

import pytest

from polaris_fast.judge.flow.aimd import AdaptiveLimit, LimitRange
from polaris_fast.judge.flow.gate import Gate


def answers(limit: AdaptiveLimit, num: int, now: float = 0.0) -> None:
    for _ in range(num):
        limit.answered(now)


def burst(limit: AdaptiveLimit, now: float, retry_after_s: float | None = None) -> None:
    """A whole round is turned away."""
    for _ in range(limit.limit):
        limit.throttled(now, retry_after_s)


def test_slow_start_doubles_to_the_ceiling() -> None:
    limit = AdaptiveLimit(LimitRange(10, 20, 100))
    seen = [limit.limit]
    for _ in range(4):
        answers(limit, limit.limit)
        seen.append(limit.limit)
    assert seen == [20, 40, 80, 100, 100]


def test_a_burst_cuts_by_a_fifth_once_and_ends_slow_start() -> None:
    limit = AdaptiveLimit(LimitRange(10, 40, 100), cooldown_s=15)
    burst(limit, now=0)
    burst(limit, now=5)  # of the same episode
    assert (limit.limit, limit.num_cuts) == (32, 1)
    burst(limit, now=15.5)
    assert (limit.limit, limit.num_cuts) == (25, 2)
    answers(limit, 25, now=16)  # still cooling: no growth
    assert limit.limit == 25
    answers(limit, 25, now=40)
    assert limit.limit == 26  # 25.6 * 1.05, no doubling any more


def test_retry_after_holds_and_extends_the_cooldown() -> None:
    limit = AdaptiveLimit(LimitRange(10, 40, 100), cooldown_s=15)
    burst(limit, now=0, retry_after_s=60)
    assert limit.hold_until == 60
    burst(limit, now=30, retry_after_s=1)
    assert (limit.num_cuts, limit.hold_until) == (1, 60)
    burst(limit, now=61, retry_after_s=1)
    assert (limit.num_cuts, limit.hold_until) == (2, 62)


def test_the_limit_never_leaves_its_range() -> None:
    limit = AdaptiveLimit(LimitRange(10, 20, 30), cooldown_s=0)
    for second in range(40):
        burst(limit, now=second)
    assert limit.limit == 10
    low = AdaptiveLimit(LimitRange(10, 20, 3))
    assert low.limit == 3
    answers(low, 100)
    assert low.limit == 3


def test_stray_throttling_is_no_burst() -> None:
    """8 % of answers throttled at random: the limit still reaches its ceiling, uncut."""
    rng = random.Random(1)
    limit = AdaptiveLimit(LimitRange(10, 20, 100))
    for second in range(4000):
        if rng.random() < 0.08:
            limit.throttled(second, 1.0)
        else:
            limit.answered(second)
    assert limit.limit == 100
    assert limit.num_cuts <= 4


def test_server_errors_and_timeouts_are_no_answers_and_no_room_for_more() -> None:
    limit = AdaptiveLimit(LimitRange(10, 20, 100))
    for _ in range(200):
        limit.failed()
    assert limit.limit == 20
    for number in range(1000):  # 40 % fail
        limit.failed() if number % 5 < 2 else limit.answered(0.0)
    assert (limit.limit, limit.num_cuts) == (20, 0)
    answers(limit, 20)
    assert limit.limit == 40


def test_stray_server_errors_leave_a_round_clean() -> None:
    limit = AdaptiveLimit(LimitRange(10, 20, 100))
    for number in range(1000):
        limit.failed() if number % 10 == 0 else limit.answered(0.0)
    assert limit.limit == 100


def test_an_endpoint_over_its_limit_brings_the_limit_down_to_it() -> None:
    """A server that turns away all above 30: the limit settles there, not at the ceiling."""
    limit = AdaptiveLimit(LimitRange(10, 20, 100), cooldown_s=15)
    tops = []
    for second in range(600):  # a round a second
        for place in range(limit.limit):
            if place < 30:
                limit.answered(second)
            else:
                limit.throttled(second, None)
        tops.append(limit.limit)
    assert 25 <= sum(tops[200:]) / len(tops[200:]) <= 42


async def test_the_gate_bounds_and_lets_the_oldest_go_first() -> None:
    gate = Gate(AdaptiveLimit(LimitRange(1, 2, 2)), now=lambda: 0.0)
    order: list[int] = []

    async def job(age: int) -> None:
        await gate.enter(age)
        assert gate.in_flight <= 2
        order.append(age)
        await asyncio.sleep(0)
        gate.leave()

    await asyncio.gather(*(job(age) for age in (5, 9, 7, 1, 8, 3)))
    assert order[:2] == [5, 9]  # found it empty
    assert order[2:] == [1, 3, 7, 8]
    assert (gate.in_flight, gate.waiting) == (0, 0)


async def test_a_cancelled_wait_gives_its_place_to_the_next() -> None:
    gate = Gate(AdaptiveLimit(LimitRange(1, 1, 1)), now=lambda: 0.0)
    await gate.enter(0)
    waiting = [asyncio.create_task(gate.enter(age)) for age in (1, 2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    gate.leave()
    await waiting[1]
    assert gate.in_flight == 1
    third = asyncio.create_task(gate.enter(3))
    await asyncio.sleep(0)
    gate.leave()  # lets the third through, which is cancelled before it runs
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    assert gate.in_flight == 0


async def test_a_held_gate_opens_by_itself() -> None:
    loop = asyncio.get_running_loop()
    limit = AdaptiveLimit(LimitRange(1, 4, 4))
    gate = Gate(limit, now=loop.time)
    limit.hold_until = loop.time() + 0.02
    entered = [asyncio.create_task(gate.enter(age)) for age in range(3)]
    await asyncio.sleep(0)
    assert gate.in_flight == 0
    await asyncio.gather(*entered)
    assert loop.time() >= limit.hold_until
