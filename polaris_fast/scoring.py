"""From finished rows to scored groups, while other rows are still written or judged.

Rows are submitted the moment they finish; a group is ready when each of its rows has an outcome.
A failed judgement is never a number: its row has no reward and stays out of the loss.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from .config import Config
from .judge import JudgeJob, Scorer
from .metrics import PhaseClock
from .rewards import compose_reward
from .types import (
    Group,
    Outcome,
    RewardParts,
    Row,
    RowKind,
    Scored,
    UserError,
)  # fmt: skip

_POLL_S = 0.2  # how often a wait looks for a stop request


class JudgeDown(UserError):
    """Too many rows of a step could not be judged; nothing was trained on the scraps."""


class StepScorer:
    """Judges the rows of one step and hands out groups as they become ready."""

    def __init__(
        self,
        source: Scorer,
        config: Config,
        *,
        clock: PhaseClock | None = None,
        check_stop: Callable[[], None] = lambda: None,
        on_outcome: Callable[[Row], None] = lambda row: None,
    ) -> None:
        """
        Args:
            source: where outcomes come from.
            config: the run's configuration.
            clock: books the time the training thread waited under "judge_exposed".
            check_stop: called while waiting; raises to stop the step.
            on_outcome: called the moment a row's outcome arrives, on the thread that brings it.
        """
        self.source, self.config = source, config
        self.check_stop, self.on_outcome = check_stop, on_outcome
        self.clock = clock or PhaseClock()
        self._rows: dict[str, Row] = {}  # every row of the step, over all its rounds
        self.trace: list[tuple[float, str, str]] = []  # (when, "row", "sent ID" or "scored ID")
        self._arrived: queue.SimpleQueue[tuple[Row, Outcome]] = queue.SimpleQueue()

    def submit(self, row: Row) -> None:
        """Send a finished row to its judge; returns at once."""
        self._rows[row.row_id] = row
        self.trace.append((time.perf_counter(), "row", f"sent {row.row_id}"))
        settled = self._settled_without_judge(row)
        if settled is not None:
            self._arrive(row, settled)
            return
        samples = self.config.hri.num_judge_samples if row.kind is RowKind.HUMAN else 1
        job = JudgeJob(
            job_id=row.row_id,
            prompt=row.record.prompt,
            story=row.story,
            samples=samples,
            kind=row.kind,
            group=_group_id(row),
            columns={
                **row.record.columns,
                "uid": row.record.uid,
                "target_word_count": row.record.target_word_count,
            },
        )
        future = self.source.submit(job)
        future.add_done_callback(lambda done: self._arrive(row, done.result()))

    def ready_groups(self, groups: list[Group], *, fixed_order: bool) -> Iterator[Group]:
        """Yield each group once all its rows have an outcome.

        Groups with failed rows come last: when more than `judge.max_failed_fraction` of the
        step's rows failed, those rows are judged again before any of these groups is trained.

        Args:
            groups: the step's groups, their rows submitted or about to be.
            fixed_order: yield in index order (deterministic) instead of earliest ready first.

        Raises:
            JudgeDown: still too many failures after `judge.max_rejudge_rounds`.
        """
        waiting = {group.index: group for group in groups}
        deferred: list[Group] = []
        while waiting:
            ready = self._next_ready(waiting, fixed_order=fixed_order)
            del waiting[ready.index]
            if any(not isinstance(row.outcome, Scored) for row in ready.rows):
                deferred.append(ready)
            else:
                yield ready
        self._rejudge(deferred)
        for group in deferred:
            while not self._complete(group) or self._ask_anew(group):
                self._wait()
        yield from deferred

    def _next_ready(self, waiting: dict[int, Group], *, fixed_order: bool) -> Group:
        self._drain()
        while True:
            candidates = [next(iter(waiting.values()))] if fixed_order else list(waiting.values())
            for group in candidates:
                if self._complete(group) and not self._ask_anew(group):
                    return group
            self._wait()

    def _complete(self, group: Group) -> bool:
        return all(row.outcome is not None for row in group.rows)

    def _ask_anew(self, group: Group) -> bool:
        """Submit again what a judge scored that no longer serves the group; whether there is any.

        Rows of one group share their judge: its scale is part of the baseline.
        """
        outdated = self.source.outdated(_group_id(group.rows[0]))
        again = [row for row in group.rows if row.row_id in outdated]
        for row in again:
            row.outcome = row.reward = None
            self.submit(row)
        return bool(again)

    def _rejudge(self, deferred: list[Group]) -> None:
        limit, num_rows = self.config.judge.max_failed_fraction, len(self._rows)
        for attempt in range(self.config.judge.max_rejudge_rounds + 1):
            failed = [r for g in deferred for r in g.rows if not isinstance(r.outcome, Scored)]
            if len(failed) <= limit * num_rows:
                return
            if attempt == self.config.judge.max_rejudge_rounds:
                first = failed[0].outcome
                assert first is not None and not isinstance(first, Scored)
                raise JudgeDown(
                    f"judge: {len(failed)} of {num_rows} rows could not be scored after "
                    f"{attempt} more rounds (first reason: {first.reason}); the step was not "
                    "trained. Mend the judge, then go on with resume_from_checkpoint, or raise "
                    "judge.max_failed_fraction"
                )
            for row in failed:
                row.outcome = None
                self.submit(row)
            while any(row.outcome is None for row in failed):
                self._wait()

    def _arrive(self, row: Row, outcome: Outcome) -> None:
        """Called on the judge's thread."""
        self.trace.append((time.perf_counter(), "row", f"scored {row.row_id}"))
        self._arrived.put((row, outcome))  # first: a view that fails must not lose an outcome
        self.on_outcome(row)

    def _drain(self) -> None:
        while not self._arrived.empty():
            self._settle(*self._arrived.get())

    def _wait(self) -> None:
        """Block until one more outcome has arrived."""
        with self.clock.phase("judge_exposed"):
            while True:
                self.check_stop()
                try:
                    arrived = self._arrived.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                break
        self._settle(*arrived)
        self._drain()

    def _settle(self, row: Row, outcome: Outcome) -> None:
        row.outcome = outcome
        if isinstance(outcome, Scored):
            row.reward = self._reward(row, outcome)

    def _settled_without_judge(self, row: Row) -> Outcome | None:
        if row.kind is RowKind.HUMAN and self.config.hri.fixed_reward is not None:
            return Scored(quality=self.config.hri.fixed_reward, judge="hri.fixed_reward")
        if not row.story.strip() and self.config.reward.function is None:
            # Nothing to read: quality 0, and the blank and length penalties speak.
            return Scored(quality=0.0, judge="empty story", flags=("empty",))
        return None

    def _reward(self, row: Row, scored: Scored) -> RewardParts:
        """R of a row: the formula, or the number itself where a user or `fixed_reward` gave it."""
        target = row.record.target_word_count
        given = self.config.reward.function is not None or (
            row.kind is RowKind.HUMAN and self.config.hri.fixed_reward is not None
        )
        parts = compose_reward(scored, row.story, target, self.config.reward)
        return replace(parts, total=scored.quality) if given else parts


def _group_id(row: Row) -> str:
    """Unique in a run, as the row's own id is."""
    return row.row_id.rpartition("/")[0]
