"""One GRPO step, as a row travels: write, judge, advantages, pack, loss, update.

Rows go to the judge as they finish; a group that is scored trains while others are still judged.
Backward starts after the last rollout has ended, so the denominator (planned tokens) is known;
groups that drop out later are made good by rescaling the gradients before clipping.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from polaris_kernels import LossSpec

from .advantages import assign_advantages
from .config import Config
from .engine import UpdateResult
from .groups import build_groups, row_seed
from .metrics import PhaseClock
from .packing import plan_rounds
from .progress import Progress
from .prompts import PromptBuilder
from .rollout import Completion, RolloutEngine, RolloutRequest, SamplingParams
from .scoring import StepScorer
from .slots import PassSums, Slots
from .types import Group, Row, RowKind, StoryRecord


@dataclass
class StepResult:
    """Everything a step leaves for metrics, logs and tests."""

    groups: list[Group]
    updates: list[UpdateResult]
    loss_sums: dict[str, torch.Tensor]  # of the last update, added over its micro-batches
    sampling_sums: dict[str, torch.Tensor]  # see `slots.sampling_gap`
    human_weight: float
    prompts_used: int
    num_tokens: int  # completion tokens generated
    train_tokens: int  # tokens through forward and backward, all updates
    clock: PhaseClock
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
    ) -> None:
        """
        Args:
            slots: what trains the packed micro-batches, on this rank or on many.
            make_scorer: a fresh scorer for each step, booking its waits on the step's clock.
            check_stop: called at safe points; raises to abandon the step.
            fixed_order: groups train in index order (deterministic) instead of earliest first.
        """
        self.config, self.slots, self.rollouts, self.builder = config, slots, rollouts, builder
        self.spec, self.make_scorer, self.view = spec, make_scorer, view
        self.check_stop, self.fixed_order = check_stop, fixed_order
        self.sampling = SamplingParams.from_config(config, builder.stop_ids)

    def run(
        self, step: int, human_weight: float, next_record: Callable[[int], StoryRecord]
    ) -> StepResult:
        """One batch of rollouts and `num_iterations` updates.

        Args:
            step: optimizer steps of the run so far.
            human_weight: weight of human rows at this step.
            next_record: the step's n-th prompt, n from 0.
        """
        run = _Running(self, step, human_weight, next_record)
        try:
            return run.result()
        finally:
            self.slots.end_step()


class _Running:
    """The state of one step while it runs."""

    def __init__(
        self,
        parts: GRPOStep,
        step: int,
        human_weight: float,
        next_record: Callable[[int], StoryRecord],
    ) -> None:
        self.parts, self.step, self.human_weight = parts, step, human_weight
        self.config, self.slots, self.view = parts.config, parts.slots, parts.view
        self.next_record = next_record
        self.prompts_used = 0
        self.groups: list[Group] = []
        self.clock = PhaseClock()
        self.scorer = parts.make_scorer(self.clock)
        self.trace = [(time.perf_counter(), "step", "start")]
        self.planned = 0.0  # denominator that backward used
        self.sums = PassSums()  # over the passes of this step; its loss is the last pass's

    def result(self) -> StepResult:
        new = self._write(self.config.prompts_per_step)
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
            groups=self.groups,
            updates=updates,
            loss_sums=self.sums.loss,
            sampling_sums=self.sums.sampling,
            human_weight=self.human_weight,
            prompts_used=self.prompts_used,
            num_tokens=sum(len(r.completion_ids) for r in self._policy_rows()),
            train_tokens=self.sums.train_tokens,
            clock=self.clock,
            trace=sorted(self.trace + self.scorer.trace),
        )

    def _policy_rows(self) -> list[Row]:
        return [r for g in self.groups for r in g.rows if r.kind is RowKind.POLICY]

    # rollouts -------------------------------------------------------------------------------

    def _write(self, num_prompts: int) -> list[Group]:
        """Generate groups for the next prompts; each row is submitted the moment it ends."""
        records = [self.next_record(self.prompts_used + n) for n in range(num_prompts)]
        self.prompts_used += num_prompts
        groups = build_groups(
            records,
            self.parts.builder,
            step=self.step,
            num_generations=self.config.num_generations,
            human_weight=self.human_weight,
            first_index=len(self.groups),
        )
        self.groups += groups
        rows = [row for group in groups for row in group.rows]
        self.view.phase("judging", len(rows))
        for row in rows:
            if row.kind is RowKind.HUMAN:
                self.scorer.submit(row)
        policy = [row for row in rows if row.kind is RowKind.POLICY]
        self.view.phase("writing", len(policy))
        with self.clock.phase("rollout"):
            self.parts.rollouts.generate(
                [
                    RolloutRequest(tuple(r.prompt_ids), row_seed(self.config.seed, r.row_id))
                    for r in policy
                ],
                self.parts.sampling,
                lambda index, completion: self._finish(policy[index], completion),
                lambda alive: self.parts.check_stop(),
            )
        self.trace.append((time.perf_counter(), "rollout", "end"))
        return groups

    def _finish(self, row: Row, completion: Completion) -> None:
        row.completion_ids = completion.completion_ids
        row.rollout_logps = completion.rollout_logps
        row.sampler_logps = completion.sampler_logps
        row.finish_reason = completion.finish_reason
        row.thinking, row.story = self.parts.builder.decode(completion.completion_ids)
        self.scorer.submit(row)
        self.view.advance(1, phase="writing")

    # training -------------------------------------------------------------------------------

    def _train_ready(self, groups: list[Group]) -> None:
        self.view.phase("training", len(groups))
        for ready in self._batches(groups):
            with self.clock.phase("train"):
                self._train(ready)
                self.view.advance(len(ready), phase="training")

    def _batches(self, groups: list[Group]) -> Iterator[list[Group]]:
        """Groups to train together, with their advantages, in the order they become ready.

        One group at a time keeps one rank busy; several ranks wait for enough rows to fill one
        micro-batch each. Statistics that span the batch wait for all of it.
        """
        ready = self.scorer.ready_groups(groups, fixed_order=self.parts.fixed_order)
        if self.config.scale_rewards == "batch":
            whole = list(ready)
            assign_advantages(whole, self.config, self.human_weight)
            yield whole
            return
        enough = (self.slots.num_ranks - 1) * self.config.packing.max_tokens_per_microbatch
        waiting: list[Group] = []
        for group in ready:
            assign_advantages([group], self.config, self.human_weight)
            waiting.append(group)
            if sum(row.num_tokens for g in waiting for row in g.rows if row.trained) >= enough:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def _train(self, groups: list[Group]) -> None:
        names = " ".join(str(group.index) for group in groups)
        self.trace.append((time.perf_counter(), "train", f"start {names}"))
        rows = [row for group in groups for row in group.rows if row.trained]
        rounds = plan_rounds(
            [row.num_tokens for row in rows],
            self.config.packing.max_tokens_per_microbatch,
            cost=self.slots.row_cost,
            num_ranks=self.slots.num_ranks,
        )
        for slots in rounds:
            self.parts.check_stop()
            self.slots.first_pass([[rows[i] for i in slot] for slot in slots], self.planned)
        self.trace.append((time.perf_counter(), "train", f"end {names}"))

    def _update_all(self) -> list[UpdateResult]:
        """The first update ends the overlapped pass; the others go over the same slots again."""
        actual = self._denominator([r for g in self.groups for r in g.rows if r.trained])
        self.sums = self.slots.take_sums()
        if actual == 0:
            self.view.warn(f"step {self.step + 1}: no group could be trained, no update")
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
