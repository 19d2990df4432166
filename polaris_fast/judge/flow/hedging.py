"""A second request beside one that takes unusually long, for the last stragglers of a batch only.

While most of a batch is open, a slow answer holds nobody up; a step waits for its last rows. So a
second request is sent when nothing queues, at most a tenth of the batch is still open, and the
first request has taken longer than 95 % of recent ones. Whichever answers first counts, the other
is cancelled; its cost is estimated and counted, because providers bill what they have begun.

Which of two answers wins is a matter of time, so a judge that samples may score differently from
run to run, as it may anyway; what was scored once is in the journal and stays.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .allowance import Allowance

MIN_ANSWERS = 20
RECENT = 256  # answers
QUANTILE = 0.95
STRAGGLER_SHARE = 0.1
LOOK_AGAIN = 0.25  # of the delay: how often a straggler that may not be hedged yet is looked at
LOOK_AGAIN_S = 0.1  # and at least

T = TypeVar("T")


class HedgeRule:
    """When a second request may be sent; knows latencies, no clock."""

    def __init__(self, share: float) -> None:
        """
        Args:
            share: hedges as a share of all first calls; 0 sends none.
        """
        self._allowance = Allowance(share, start=1.0 if share > 0 else 0.0)
        self.enabled = share > 0
        self._recent_s: deque[float] = deque(maxlen=RECENT)

    def first_call(self) -> None:
        """A first call is made: it earns its share of a hedge."""
        self._allowance.earn()

    def answered(self, latency_s: float) -> None:
        """A request took this long."""
        self._recent_s.append(latency_s)

    def p95_s(self) -> float | None:
        """What 95 % of recent answers did not exceed; None: there were too few."""
        if len(self._recent_s) < MIN_ANSWERS:
            return None
        ordered = sorted(self._recent_s)
        return ordered[int(QUANTILE * len(ordered))]

    def spend(self, *, num_open: int, batch: int, queued: int) -> bool:
        """Whether to send a second request now; counts it.

        Args:
            num_open: jobs without an outcome.
            batch: jobs submitted since there were none open.
            queued: requests that wait to be sent.
        """
        last = num_open <= max(1.0, STRAGGLER_SHARE * batch)
        return last and not queued and self._allowance.spend()


async def hedged(
    first: Callable[[Callable[[], None]], Coroutine[Any, Any, T]],
    second: Callable[[], Coroutine[Any, Any, T]],
    *,
    delay_s: Callable[[], float | None],
    may_hedge: Callable[[], bool],
) -> T:
    """The result of whichever succeeds first; the other is cancelled and awaited.

    Args:
        first: started at once; calls its argument when its request is sent: waiting for a place
            is no sign of a straggler.
        second: started when `first` has taken `delay_s()` and `may_hedge` agrees.
        delay_s: asked until it is known how long requests take; None: not yet.
        may_hedge: asked again and again once the request is late.

    Raises:
        What `first` raised, when neither succeeded.
    """
    loop = asyncio.get_running_loop()
    sent: asyncio.Future[None] = loop.create_future()
    main = asyncio.create_task(first(lambda: _tell(sent)))
    tasks = [main]
    try:
        either: list[asyncio.Future[Any]] = [main, sent]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        begin = loop.time()
        while not main.done():
            limit_s = delay_s()
            left_s = LOOK_AGAIN_S if limit_s is None else limit_s - (loop.time() - begin)
            if left_s <= 0 and may_hedge():
                tasks.append(asyncio.create_task(second()))
                return await _first_success(main, tasks[1])
            wait_s = left_s if left_s > 0 else max(LOOK_AGAIN * (limit_s or 0), LOOK_AGAIN_S)
            await asyncio.wait([main], timeout=wait_s)
        return main.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first_success(main: asyncio.Task[T], other: asyncio.Task[T]) -> T:
    pending: set[asyncio.Task[T]] = {main, other}
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in sorted(done, key=lambda task: task is not main):
            if task.exception() is None:
                return task.result()
    return main.result()  # raises


def _tell(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
