"""One GRPO step, as a row travels: write, judge, advantages, pack, loss, update.

Rows go to the judge as they finish; a group that is scored trains while others are still judged.
Backward starts after the last rollout has ended, so the denominator (planned tokens) is known;
groups that drop out later are made good by rescaling the gradients before clipping.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from polaris_kernels import LossSpec

from .advantages import assign_advantages
from .batch import Batch, BatchWriter
from .config import Config
from .engine import UpdateResult
from .metrics import PhaseClock
from .packing import plan_rounds, split_full_rounds
from .progress import Progress
from .prompts import PromptBuilder
from .rollout import Completion, RolloutEngine
from .scoring import StepScorer
from .slots import PassSums, Slots
from .types import Group, Row, RowKind, StoryRecord


@dataclass
class StepResult:
    """Everything a step leaves for metrics, logs and tests."""

    step: int  # optimizer steps before it
    groups: list[Group]
    updates: list[UpdateResult]
    loss_sums: dict[str, torch.Tensor]  # of the last update, added over its micro-batches
    sampling_sums: dict[str, torch.Tensor]  # see `slots.sampling_gap`
    human_weight: float
    prompts_used: int
    num_tokens: int  # completion tokens generated
    train_tokens: int  # tokens through forward and backward, all updates
    clock: PhaseClock
    generation_s: float  # that the rollout engine wrote, also while another step trained
    trace: list[tuple[float, str, str]] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.groups for row in group.rows]


class GRPOStep:
    """Runs steps; owns no state between them but its parts."""

    def __init__(
        self,
        config: Config,
        *,
        slots: Slots,
        rollouts: RolloutEngine,
        builder: PromptBuilder,
        spec: LossSpec,
        make_scorer: Callable[[PhaseClock], StepScorer],
        view: Progress,
        check_stop: Callable[[], None],
        fixed_order: bool,
        earlier: Mapping[str, Completion] | None = None,
    ) -> None:
        """
        Args:
            slots: what trains the packed micro-batches, on this rank or on many.
            make_scorer: a fresh scorer for each step, booking its waits on the step's clock.
            check_stop: called at safe points; raises to abandon the step.
            fixed_order: groups train in index order (deterministic) instead of earliest first.
            earlier: see `BatchWriter`.
        """
        self.config, self.slots, self.spec, self.view = config, slots, spec, view
        self.check_stop, self.fixed_order = check_stop, fixed_order
        self.writer = BatchWriter(
            config,
            rollouts=rollouts,
            builder=builder,
            make_scorer=make_scorer,
            view=view,
            earlier=earlier,
        )

    def run(
        self, step: int, human_weight: float, next_record: Callable[[int], StoryRecord]
    ) -> StepResult:
        """One batch of rollouts and `num_iterations` updates.

        Args:
            step: optimizer steps of the run so far.
            human_weight: weight of human rows at this step.
            next_record: the step's n-th prompt, n from 0.
        """
        return self._run(_Running(self, self.writer.begin(step, human_weight), next_record))

    def train(self, await_batch: Callable[[], Batch]) -> StepResult:
        """As `run`, on a batch that is written elsewhere: only the wait for it counts as rollout.

        Args:
            await_batch: returns the batch once all its rows are written.
        """
        clock, begun = PhaseClock(), time.perf_counter()
        with clock.phase("rollout"):
            batch = await_batch()
        batch.book_on(clock)
        return self._run(_Running(self, batch, None, begun))

    def _run(self, running: _Running) -> StepResult:
        try:
            return running.result()
        finally:
            self.slots.end_step()


class _Running:
    """The state of one step while it runs."""

    def __init__(
        self,
        parts: GRPOStep,
        batch: Batch,
        next_record: Callable[[int], StoryRecord] | None,
        begun: float | None = None,
    ) -> None:
        self.parts, self.batch, self.next_record = parts, batch, next_record
        self.config, self.slots, self.view = parts.config, parts.slots, parts.view
        self.clock, self.scorer = batch.clock, batch.scorer
        self.trace = [(begun or time.perf_counter(), "step", "start")]
        self.planned = 0.0  # denominator that backward used
        self.sums = PassSums()  # over the passes of this step; its loss is the last pass's

    def result(self) -> StepResult:
        new = self.batch.groups or self._write(self.config.prompts_per_step)
        # Further rounds keep the first one's denominator; the final rescale makes it exact.
        self.planned = self._denominator([r for g in new for r in g.rows])
        self._train_ready(new)
        for _ in range(self.config.zero_spread_resample_rounds):
            flat = sum(g.dropped == "zero_spread" for g in new)
            if not flat:
                break
            new = self._write(flat)
            self._train_ready(new)
        updates = self._update_all()
        self.trace.append((time.perf_counter(), "step", "end"))
        return StepResult(
            step=self.batch.step,
            groups=self.batch.groups,
            updates=updates,
            loss_sums=self.sums.loss,
            sampling_sums=self.sums.sampling,
            human_weight=self.batch.human_weight,
            prompts_used=self.batch.prompts_used,
            num_tokens=sum(
                len(r.completion_ids) for r in self.batch.rows if r.kind is RowKind.POLICY
            ),
            train_tokens=self.sums.train_tokens,
            clock=self.clock,
            generation_s=self.batch.generation_s,
            trace=sorted(self.trace + self.batch.trace + self.scorer.trace),
        )

    def _write(self, num_prompts: int) -> list[Group]:
        """Groups for the next prompts."""
        assert self.next_record is not None  # a batch written ahead is whole
        first = self.batch.prompts_used
        records = [self.next_record(first + n) for n in range(num_prompts)]
        with self.clock.phase("rollout"):
            return self.parts.writer.write(
                self.batch, records, lambda alive: self.parts.check_stop()
            )

    # training -------------------------------------------------------------------------------

    def _train_ready(self, groups: list[Group]) -> None:
        self.view.phase("training", len(groups))
        waiting: list[Row] = []
        for ready in self._batches(groups):
            with self.clock.phase("train"):
                waiting += [row for group in ready for row in group.rows if row.trained]
                waiting = self._train(ready, waiting, wait=self.slots.num_ranks > 1)
                self.view.advance(len(ready), phase="training")
        if waiting:
            with self.clock.phase("train"):
                self._train([], waiting, wait=False)

    def _batches(self, groups: list[Group]) -> Iterator[list[Group]]:
        """Groups with their advantages, in the order they become ready.

        Statistics that span the batch wait for all of it.
        """
        ready = self.scorer.ready_groups(groups, fixed_order=self.parts.fixed_order)
        if self.config.scale_rewards == "batch":
            whole = list(ready)
            assign_advantages(whole, self.config, self.batch.human_weight)
            yield whole
            return
        for group in ready:
            assign_advantages([group], self.config, self.batch.human_weight)
            yield [group]

    def _train(self, groups: list[Group], rows: list[Row], *, wait: bool) -> list[Row]:
        """Forward and backward of rows, those of earlier groups among them.

        Args:
            groups: that have just become ready.
            wait: leave rows for later that do not fill a micro-batch on every rank.
        Returns:
            the rows that were left.
        """
        names = " ".join(str(group.index) for group in groups)
        self.trace.append((time.perf_counter(), "train", f"start {names}"))
        lengths = [row.num_tokens for row in rows]
        budget, num_ranks = self.config.packing.max_tokens_per_microbatch, self.slots.num_ranks
        rounds = plan_rounds(lengths, budget, cost=self.slots.row_cost, num_ranks=num_ranks)
        left: list[int] = []
        if wait:
            rounds, left = split_full_rounds(rounds, lengths, budget, num_ranks)
        for slots in rounds:
            self.parts.check_stop()
            self.slots.first_pass([[rows[i] for i in slot] for slot in slots], self.planned)
        self.trace.append((time.perf_counter(), "train", f"end {names}"))
        return [rows[i] for i in left]

    def _update_all(self) -> list[UpdateResult]:
        """The first update ends the overlapped pass; the others go over the same slots again."""
        actual = self._denominator([r for g in self.batch.groups for r in g.rows if r.trained])
        self.sums = self.slots.take_sums()
        if actual == 0:
            self.view.warn(f"step {self.batch.step + 1}: no group could be trained, no update")
            self.slots.skip_updates(self.config.num_iterations)
            return []
        scale = self.planned / actual
        for name in ("sum_loss", "sum_loss_human"):
            self.sums.loss[name] = self.sums.loss[name] * scale
        with self.clock.phase("optimizer"):
            updates = [self.slots.update(scale)]
        for _ in range(1, self.config.num_iterations):
            with self.clock.phase("train"):
                # No stop from here on: the weights have moved, a step is whole or not at all.
                self.slots.again(actual)
                self.sums.loss = {}
                self.sums.add(self.slots.take_sums())
            with self.clock.phase("optimizer"):
                updates.append(self.slots.update(1.0))
        return updates

    def _denominator(self, rows: list[Row]) -> float:
        """Loss tokens for token means, rows for sequence means, over the global batch."""
        if self.parts.spec.resolved_aggregation == "token_mean":
            return float(sum(len(row.completion_ids) for row in rows))
        return float(len(rows))
