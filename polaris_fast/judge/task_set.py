"""Jobs that run as asyncio tasks in a thread of their own and end as futures of outcomes.

What `JudgePool` and `UserReward` share: submission from any thread, counting, and a close that
leaves no future without a result.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from ..types import Failed, Outcome
from .loop_thread import LoopThread
from .metrics import ScorerMetrics

log = logging.getLogger(__name__)

CANCELLED = "cancelled"  # class of jobs that were under way at the close
INTERNAL = "internal"  # class of jobs whose task raised: a mistake in our code, logged as an error

Start = Callable[[], Coroutine[Any, Any, Outcome]]
Hook = Callable[[], Coroutine[Any, Any, None]]


class TaskSet:
    """Starts jobs on its loop; scored + failed + rejected = submitted once it is closed."""

    def __init__(self, name: str) -> None:
        self.metrics = ScorerMetrics()
        self._name = name
        self._thread = LoopThread(name)
        self._lock = threading.Lock()
        self._open = False
        self._tasks: set[asyncio.Task[Outcome]] = set()

    def start(self, begin: Hook) -> None:
        """Start the loop and run `begin` on it; what `begin` raises is raised here."""
        self._thread.start()
        self._thread.call(begin())
        self._open = True

    def submit(self, start: Start) -> Future[Outcome]:
        """Run `start()` as a task. RuntimeError when not open."""
        future: Future[Outcome] = Future()
        future.set_running_or_notify_cancel()  # a job ends with an outcome, never by cancel()
        with self._lock:
            if not self._open:
                raise RuntimeError(f"{self._name}: not open; submit inside its `with` block")
            self.metrics.job_submitted()
            self._thread.loop.call_soon_threadsafe(self._launch, start, future)
        return future

    def close(self, end: Hook | None = None) -> None:
        """Cancel what is under way, run `end` on the loop, stop it; may be called twice."""
        with self._lock:
            self._open = False
        try:
            if self._thread.running:
                self._thread.call(self._wind_up(end))
        finally:
            self._thread.stop()

    def _launch(self, start: Start, future: Future[Outcome]) -> None:
        task = asyncio.get_running_loop().create_task(start())
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._finish(done, future))

    def _finish(self, task: asyncio.Task[Outcome], future: Future[Outcome]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            outcome: Outcome = Failed("closed before the judgement arrived", CANCELLED)
        elif (error := task.exception()) is not None:
            log.error("%s: a job raised", self._name, exc_info=error)
            outcome = Failed(repr(error), INTERNAL)
        else:
            outcome = task.result()
        self.metrics.job_ended(outcome)
        future.set_result(outcome)

    async def _wind_up(self, end: Hook | None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if end is not None:
            await end()
