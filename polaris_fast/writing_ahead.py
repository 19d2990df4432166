"""Batches written ahead of the step that trains them, on a thread of their own.

    writer thread   batch s+1 ............| batch s+2 ...........|
    trainer         train s ....|  sync   | train s+1 ....| sync |

With `max_staleness` n the batch of step s is begun once the servers hold the weights of step s - n,
so no token is more than n updates older than the weights that train on it. When new weights reach
the servers is the choice of `in_step`:

- False: as soon as a step ends. Rows in flight go on with them, and tell which version drew which
  token: the freshest rows.
- True (deterministic runs): between batches. Batch s is drawn by the weights of step s - n exactly,
  whatever the clocks say, so that a resumed run repeats it.

What a checkpoint needs is `written`: every row that has ended and not been trained. A resumed run
takes these over (`BatchWriter`'s `earlier`), judges them by the journal, and writes the others.
With `in_step` it may only miss rows that its own weights are to draw, so whoever saves settles
before, also when the run was asked to stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from .batch import Batch, BatchWriter
from .rollout import RolloutEngine
from .types import Row, RowKind, StoryRecord

_POLL_S = 0.1  # how often a wait looks for a stop request and for lost servers
Plan = Callable[[int], tuple[Sequence[StoryRecord], float]]


class _Closed(Exception):
    """The writer was told to give up."""


class WritingAhead:
    """A context manager around the steps; its methods are the training thread's."""

    def __init__(
        self,
        writer: BatchWriter,
        rollouts: RolloutEngine,
        plan: Plan,
        *,
        first_step: int,
        total_steps: int,
        max_staleness: int,
        in_step: bool,
        check_stop: Callable[[], None],
    ) -> None:
        """
        Args:
            plan: prompts and weight of the human rows of a step's batch.
            first_step: optimizer steps done; its batch is written first.
            in_step: weights change between batches only.
            check_stop: called while the training thread waits here; may raise.
        """
        self.writer, self.rollouts, self.plan, self.check_stop = writer, rollouts, plan, check_stop
        self.total_steps, self.max_staleness, self.in_step = total_steps, max_staleness, in_step
        self._changed = threading.Condition()
        self._batches: dict[int, Batch] = {}  # of the present and later steps
        self._version = first_step - max_staleness - 1  # nothing may begin before the first `sync`
        self._num_written = first_step  # steps whose batch is whole
        self._fault: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._main, name="rollouts", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the writer; rows in flight are dropped on the servers."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    # the training thread ----------------------------------------------------------------------

    def settle(self, version: int, check_stop: Callable[[], None] | None = None) -> None:
        """With `in_step`, wait until all is written that only the weights of before may write.

        Args:
            version: optimizer steps that made the trainer's present weights. A checkpoint of them
                resumes exactly from here on: whoever resumes has no older ones.
            check_stop: called instead of its own.
        """
        if not self.is_settled(version):
            self._wait(lambda: self.is_settled(version), version, check_stop)

    def is_settled(self, version: int) -> bool:
        """Whether `settle` would return at once."""
        return not self.in_step or self._version >= version or not self._may_begin()

    def sync(self, version: int) -> None:
        """Give the servers the weights of `version`; later batches may begin."""
        self.settle(version)
        self.rollouts.sync(version, self.check_stop)
        with self._changed:
            self._version = version
            for step in [step for step in self._batches if step < version]:
                del self._batches[step]
            self._changed.notify_all()

    def take(self, step: int) -> Batch:
        """The batch of a step, once all its rows are written; its judging may go on."""
        self._wait(lambda: self._num_written > step, step)
        return self._batches[step]

    def written(self, step: int) -> list[Row]:
        """Policy rows of this and later steps that have ended."""
        with self._changed:
            batches = [batch for number, batch in self._batches.items() if number >= step]
        rows = [row for batch in batches for row in batch.rows]
        return [r for r in rows if r.kind is RowKind.POLICY and r.finish_reason is not None]

    def _wait(
        self,
        reached: Callable[[], bool],
        version: int,
        check_stop: Callable[[], None] | None = None,
    ) -> None:
        look_up = check_stop or self.check_stop
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: reached() or self._fault, _POLL_S):
                    if self._fault is not None:
                        raise self._fault
                    return
            look_up()
            self.rollouts.mend(version, look_up)

    # the writer's thread ----------------------------------------------------------------------

    def _main(self) -> None:
        try:
            while self._next_is_due():
                step = self._num_written
                records, human_weight = self.plan(step)
                batch = self.writer.begin(step, human_weight)
                with self._changed:
                    self._batches[step] = batch
                self.writer.write(batch, records, self._look_up)
                with self._changed:
                    self._num_written += 1
                    self._changed.notify_all()
        except _Closed:
            pass
        except BaseException as fault:  # raised again on the training thread
            with self._changed:
                self._fault = fault
                self._changed.notify_all()

    def _next_is_due(self) -> bool:
        """Wait until the next batch may begin; False when there is no more to write."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._may_begin() or self._is_done())
            return not self._closing and not self._is_done()

    def _may_begin(self) -> bool:
        ahead = self._num_written - self._version
        return not self._is_done() and ahead <= self.max_staleness

    def _is_done(self) -> bool:
        return self._num_written >= self.total_steps

    def _look_up(self, alive: int) -> None:
        if self._closing:
            raise _Closed
