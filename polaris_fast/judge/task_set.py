"""Jobs that run as asyncio tasks in a thread of their own and end as futures of outcomes.

What `JudgePool` and `UserReward` share: starting and closing, submission from any thread, counting,
and an end that leaves no future without a result.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from ..loop_thread import LoopThread
from ..types import Failed, Outcome
from .jobs import JudgeJob
from .metrics import ScorerMetrics

log = logging.getLogger(__name__)

CANCELLED = "cancelled"  # class of jobs that were under way at the close
INTERNAL = "internal"  # class of jobs whose task raised: a mistake in our code, logged as an error


class TaskScorer(ABC):
    """A scorer whose jobs are coroutines; scored + failed + rejected = submitted once closed."""

    def __init__(self, name: str) -> None:
        """Nothing is started before `with`."""
        self.metrics = ScorerMetrics(self.gauges)
        self._name = name
        self._thread = LoopThread(name)
        self._lock = threading.Lock()
        self._open = False
        self._tasks: set[asyncio.Task[Outcome]] = set()

    # what a scorer is made of; all but `gauges` run on the loop

    async def begin(self) -> None:  # noqa: B027  # nothing to do unless a scorer says so
        """Called once before any job; what it raises leaves `with`."""

    @abstractmethod
    async def score(self, job: JudgeJob) -> Outcome:
        """One job's way to its outcome."""

    async def end(self) -> None:  # noqa: B027
        """Called once after all jobs have ended, also when `begin` raised."""

    def gauges(self) -> dict[str, float]:
        """Numbers of the moment for `take_metrics`; called from any thread."""
        return {}

    # the interface of a `Scorer`

    def __enter__(self) -> Self:
        try:
            self._thread.start()
            self._thread.call(self.begin())
        except BaseException:
            self.close()
            raise
        self._open = True
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def submit(self, job: JudgeJob) -> Future[Outcome]:
        """Start scoring one story. Call from any thread; RuntimeError outside the `with` block."""
        future: Future[Outcome] = Future()
        future.set_running_or_notify_cancel()  # a job ends with an outcome, never by cancel()
        with self._lock:
            if not self._open:
                raise RuntimeError(f"{self._name}: not open; submit inside its `with` block")
            self.metrics.job_submitted()
            self._thread.loop.call_soon_threadsafe(self._launch, job, future)
        return future

    def outdated(self, group: str) -> frozenset[str]:
        """Ids of the group's jobs that are to be submitted again: another judge serves it now."""
        return frozenset()

    def take_metrics(self) -> dict[str, float]:
        """`judge/*` since the last call, see `metrics`."""
        return self.metrics.take()

    def close(self) -> None:
        """Cancel what is under way (Failed, class `cancelled`) and stop; may be called twice."""
        with self._lock:
            self._open = False
        try:
            if self._thread.running:
                self._thread.call(self._wind_up())
        finally:
            self._thread.stop()

    # below: on the loop

    def _launch(self, job: JudgeJob, future: Future[Outcome]) -> None:
        task = asyncio.get_running_loop().create_task(self.score(job))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._finish(done, job, future))

    def _finish(self, task: asyncio.Task[Outcome], job: JudgeJob, future: Future[Outcome]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            outcome: Outcome = Failed("closed before the judgement arrived", CANCELLED)
        elif (error := task.exception()) is not None:
            log.error("%s: a job raised", self._name, exc_info=error)
            outcome = Failed(repr(error), INTERNAL)
        else:
            outcome = task.result()
        try:
            self.metrics.job_ended(job, outcome)
        finally:  # whatever counting comes to, nobody may wait for ever
            future.set_result(outcome)

    async def _wind_up(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.end()
