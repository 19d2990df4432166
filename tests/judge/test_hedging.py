"""A second request beside a straggler: when it may be sent, which one counts, what is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from polaris_fast.judge.flow.hedging import HedgeRule, hedged


def rule_with(latencies: list[float], share: float = 0.05) -> HedgeRule:
    rule = HedgeRule(share)
    for latency_s in latencies:
        rule.answered(latency_s)
    return rule


def test_the_delay_is_the_rolling_p95() -> None:
    assert rule_with([1.0] * 19).p95_s() is None
    assert rule_with([float(n) for n in range(100)]).p95_s() == 95.0
    assert rule_with([9.0] * 500 + [1.0] * 256).p95_s() == 1.0
    assert not rule_with([], share=0.0).enabled


@pytest.mark.parametrize(
    ("num_open", "batch", "queued", "allowed"),
    [(4, 48, 0, True), (5, 48, 0, False), (1, 3, 0, True), (4, 48, 1, False), (2, 3, 0, False)],
)
def test_only_the_last_stragglers_are_hedged(num_open, batch, queued, allowed) -> None:
    assert rule_with([]).spend(num_open=num_open, batch=batch, queued=queued) is allowed


def test_hedges_are_one_and_then_five_in_a_hundred() -> None:
    rule = rule_with([])
    for _ in range(100):
        rule.first_call()
    spent = sum(rule.spend(num_open=1, batch=100, queued=0) for _ in range(100))
    assert spent == 6


class Call:
    """A coroutine that ends when told, and knows how it ended."""

    def __init__(self) -> None:
        self.end = asyncio.Event()
        self.started = asyncio.Event()
        self.fault: Exception | None = None
        self.sends = True
        self.was_cancelled = False

    async def __call__(self, on_sent: Callable[[], None] = lambda: None) -> Call:
        self.started.set()
        if self.sends:
            on_sent()
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        if self.fault is not None:
            raise self.fault
        return self


def race(first: Call, second: Call, may_hedge=lambda: True) -> asyncio.Task[Call]:
    return asyncio.create_task(hedged(first, second, delay_s=lambda: 0.001, may_hedge=may_hedge))


async def test_a_quick_answer_sends_no_second_request() -> None:
    first, second = Call(), Call()
    first.end.set()
    assert await hedged(first, second, delay_s=lambda: 10, may_hedge=lambda: True) is first
    assert not second.started.is_set()


async def test_the_first_answer_counts_and_the_loser_is_cancelled() -> None:
    for winner in (0, 1):
        calls = Call(), Call()
        task = race(*calls)
        await calls[1].started.wait()
        calls[winner].end.set()
        assert await task is calls[winner]
        assert calls[1 - winner].was_cancelled


async def test_one_failure_leaves_the_other_and_two_raise_the_first() -> None:
    first, second = Call(), Call()
    first.fault, second.fault = ValueError("first"), ValueError("second")
    task = race(first, second)
    await second.started.wait()
    second.end.set()
    await asyncio.sleep(0)
    assert not task.done()
    first.end.set()
    with pytest.raises(ValueError, match="first"):
        await task


async def test_permission_is_asked_again_until_it_is_given() -> None:
    first, second, asked = Call(), Call(), []

    def may_hedge() -> bool:
        asked.append(1)
        return len(asked) == 3

    task = race(first, second, may_hedge)
    await second.started.wait()
    assert len(asked) == 3
    second.end.set()
    assert await task is second


async def test_a_request_that_waits_for_its_place_is_no_straggler() -> None:
    first, second = Call(), Call()
    first.sends = False
    task = race(first, second)
    await asyncio.sleep(0.01)
    assert not second.started.is_set()
    first.end.set()
    assert await task is first


async def test_cancelling_the_race_cancels_both() -> None:
    first, second = Call(), Call()
    task = race(first, second)
    await second.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert first.was_cancelled and second.was_cancelled
