"""Lets requests through one by one, those of the oldest job first, as many as the limit allows."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

from .aimd import AdaptiveLimit


class Gate:
    """A semaphore with a moving limit, a queue in order of age, and a hold; for one event loop."""

    def __init__(self, limit: AdaptiveLimit, now: Callable[[], float]) -> None:
        self._limit, self._now = limit, now
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._tie = count()
        self._timer: asyncio.TimerHandle | None = None
        self.in_flight = 0
        self.waiting = 0  # requests that are not let through yet

    @property
    def open(self) -> bool:
        """Whether a request would be let through at once, were none waiting."""
        return self.in_flight < self._limit.limit and self._now() >= self._limit.hold_until

    async def enter(self, age: int) -> None:
        """Wait for a place; call `leave` afterwards.

        Args:
            age: the job's number; a smaller one goes first, so that retries are not last in line.
        """
        if not self._queue and self.open:
            self.in_flight += 1
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (age, next(self._tie), future))
        self.waiting += 1
        self.wake()
        try:
            await future
        except asyncio.CancelledError:
            if future.cancelled():
                self.waiting -= 1
            else:  # let through and cancelled at once
                self.leave()
            raise

    def leave(self) -> None:
        """Give the place back."""
        self.in_flight -= 1
        self.wake()

    def wake(self) -> None:
        """Let through whom the limit allows by now; to be called when it has changed."""
        while self._queue and self.in_flight < self._limit.limit:
            if self._queue[0][2].done():  # cancelled while waiting
                heapq.heappop(self._queue)
                continue
            held_s = self._limit.hold_until - self._now()
            if held_s > 0:
                self._wake_in(held_s)
                return
            self.in_flight += 1
            self.waiting -= 1
            heapq.heappop(self._queue)[2].set_result(None)

    def _wake_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.wake)
