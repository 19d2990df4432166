"""From finished rows to scored groups, while other rows are still written or judged.

Rows are submitted the moment they finish; a group is ready when each of its rows has an outcome.
A failed judgement is never a number: its row has no reward and stays out of the loss.

Rows are judged once more than that in three cases: another judge has come to serve their group,
too many rows of the step have failed, or the spread of their group lies within the judge's noise.
"""

from __future__ import annotations

import queue
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from .config import Config
from .judge import JudgeJob, Scorer
from .metrics import PhaseClock
from .rewards import compose_reward
from .types import (
    Failed,
    Group,
    Outcome,
    Rejected,
    RewardParts,
    Row,
    RowKind,
    Scored,
    UserError,
)  # fmt: skip

_POLL_S = 0.2  # how often a wait looks for a stop request


class JudgeDown(UserError):
    """A step could not be judged; nothing was trained on the scraps."""


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
        self._close: set[int] = set()  # groups whose policy rows get a second judgement
        self._final: Failed | None = None  # an outcome that ends the step
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
        twice = row.kind is RowKind.POLICY and row.group in self._close
        once = self.config.hri.num_judge_samples if row.kind is RowKind.HUMAN else 1
        job = JudgeJob(
            job_id=row.row_id,
            prompt=row.record.prompt,
            story=row.story,
            samples=2 if twice else once,
            needed=1 if twice else None,  # the first one is in the journal, and stands alone
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

    def ready_groups(
        self, groups: list[Group], *, fixed_order: bool, may_stop: bool = True
    ) -> Iterator[Group]:
        """Yield each group once all its rows have an outcome.

        Groups with failed rows come last: when more than `judge.max_failed_fraction` of the
        step's rows failed, those rows are judged again before any of these groups is trained.

        Args:
            groups: the step's groups, their rows submitted or about to be.
            fixed_order: yield in index order (deterministic) instead of earliest ready first.
            may_stop: False for an evaluation: nothing is trained on it, so what is without a
                score after the last round is left out, however much it is.

        Raises:
            JudgeDown: nothing more will be judged (money, judge or journal is gone), or there are
                still too many failures after `judge.max_rejudge_rounds`.
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
        self._rejudge(deferred, may_stop=may_stop)
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
        """Submit a complete group's rows again where they need it; whether any do.

        Rows of one group share their judge: its scale is part of the baseline. And policy rows that
        spread by less than `judge.resample_below_sigmas` of the judge's noise are judged a second
        time, once: the mean of two has less of it.
        """
        outdated = self.source.outdated(_group_id(group.rows[0]))
        again = [row for row in group.rows if row.row_id in outdated]
        if not again and self._is_close(group):
            self._close.add(group.index)
            again = [row for row in group.rows if row.kind is RowKind.POLICY and row.reward]
        for row in again:
            self._submit_again(row)
        return bool(again)

    def _is_close(self, group: Group) -> bool:
        judge = self.config.judge
        least = judge.resample_below_sigmas * (judge.noise_std or 0.0)
        if not least or self.config.reward.function or group.index in self._close:
            return False
        rewards = [r.reward.total for r in group.rows if r.kind is RowKind.POLICY and r.reward]
        return len(rewards) > 1 and statistics.stdev(rewards) < least

    def _submit_again(self, row: Row) -> None:
        row.outcome = row.reward = None
        self.submit(row)

    def _rejudge(self, deferred: list[Group], *, may_stop: bool) -> None:
        """Judge what has failed again, until few enough rows are left without a score."""
        limit, num_rows = self.config.judge.max_failed_fraction, len(self._rows)
        rounds = self.config.judge.max_rejudge_rounds
        for attempt in range(rounds + 1):
            failed = [r for g in deferred for r in g.rows if not isinstance(r.outcome, Scored)]
            lost = sum(isinstance(r.outcome, Failed | Rejected) for r in self._rows.values())
            if not failed or lost <= limit * num_rows:
                return
            if attempt == rounds:
                if may_stop and self._judge_failed():
                    raise JudgeDown(self._too_many_failed(failed, attempt))
                return
            for row in failed:
                self._submit_again(row)
            for group in deferred:  # a group that changes its judge may fail anew: counted above
                while not self._complete(group) or self._ask_anew(group):
                    self._wait()

    def _judge_failed(self) -> bool:
        """Whether it is the judge, not its stories, that left rows without a score to the last.

        A refusal is the story's own: a resumed run would meet it again and stop again. Only where
        more than half of the rows are lost does it count with the failures.
        """
        outcomes, num_rows = [row.outcome for row in self._rows.values()], len(self._rows)
        num_failed = sum(isinstance(outcome, Failed) for outcome in outcomes)
        num_refused = sum(isinstance(outcome, Rejected) for outcome in outcomes)
        limit = self.config.judge.max_failed_fraction
        return num_failed > limit * num_rows or num_failed + num_refused > num_rows / 2

    def _too_many_failed(self, failed: list[Row], num_rounds: int) -> str:
        first = failed[0].outcome
        assert first is not None and not isinstance(first, Scored)
        function = self.config.reward.function
        where, what = ("reward.function", repr(function)) if function else ("judge", "the judge")
        return (
            f"{where}: {len(failed)} of {len(self._rows)} rows could not be scored after "
            f"{num_rounds} more rounds (first reason: {first.reason}); the step was not trained. "
            f"Mend {what}, then go on with resume_from_checkpoint, or raise "
            f"judge.max_failed_fraction ({self.config.judge.max_failed_fraction:g})"
        )

    def _arrive(self, row: Row, outcome: Outcome) -> None:
        """Called on the judge's thread."""
        self.trace.append((time.perf_counter(), "row", f"scored {row.row_id}"))
        self._arrived.put((row, outcome))  # first: a view that fails must not lose an outcome
        self.on_outcome(row)

    def _drain(self) -> None:
        while not self._arrived.empty():
            self._settle(*self._arrived.get())
        if self._final is not None:
            self._end_step(self._final)

    def _wait(self) -> None:
        """Block until one more outcome has arrived."""
        self._settle(*self._next_arrival())
        self._drain()

    def _next_arrival(self) -> tuple[Row, Outcome]:
        with self.clock.phase("judge_exposed"):
            while True:
                self.check_stop()
                try:
                    return self._arrived.get(timeout=_POLL_S)
                except queue.Empty:
                    continue

    def _settle(self, row: Row, outcome: Outcome) -> None:
        row.outcome = outcome
        if isinstance(outcome, Scored):
            row.reward = self._reward(row, outcome)
        elif isinstance(outcome, Failed) and outcome.final:
            self._final = outcome

    def _end_step(self, final: Failed) -> None:
        """Nothing more is sent; what is under way is paid for, and the journal is to have it."""
        while any(row.outcome is None for row in self._rows.values()):
            self._settle(*self._next_arrival())
        raise JudgeDown(
            f"{final.reason}. Nothing more is judged and the step was not trained; go on with "
            "resume_from_checkpoint: what was judged is not paid for again"
        )

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
