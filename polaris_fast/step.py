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

from polaris_kernels import LossRows, LossSpec, merge_metrics

from .advantages import assign_advantages
from .config import Config
from .engine import Engine, UpdateResult
from .groups import build_groups, row_seed
from .metrics import PhaseClock
from .packing import PackedBatch, RowCost, pack_rows, plan_slots
from .progress import Progress
from .prompts import PromptBuilder
from .rollout import Completion, RolloutEngine, RolloutRequest, SamplingParams
from .scoring import StepScorer
from .types import Group, Row, RowKind, StoryRecord


@dataclass
class Slot:
    """One packed micro-batch, kept for further updates on the same rollouts."""

    batch: PackedBatch
    rows: list[Row]
    ref_logps: torch.Tensor | None  # (N,)
    old_logps: torch.Tensor | None = None  # (N,) the first forward's own log-probs


@dataclass
class StepResult:
    """Everything a step leaves for metrics, logs and tests."""

    groups: list[Group]
    updates: list[UpdateResult]
    loss_sums: dict[str, torch.Tensor]  # of the last update, added over its micro-batches
    sampling_sums: dict[str, torch.Tensor]  # see `sampling_gap`
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
        engine: Engine,
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
            make_scorer: a fresh scorer for each step, booking its waits on the step's clock.
            check_stop: called at safe points; raises to abandon the step.
            fixed_order: groups train in index order (deterministic) instead of earliest first.
        """
        self.config, self.engine, self.rollouts, self.builder = config, engine, rollouts, builder
        self.spec, self.make_scorer, self.view = spec, make_scorer, view
        self.check_stop, self.fixed_order = check_stop, fixed_order
        self.row_cost = RowCost.of_model(engine.model)
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
        except BaseException:
            self.engine.discard_gradients()
            raise


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
        self.config, self.engine, self.view = parts.config, parts.engine, parts.view
        self.next_record = next_record
        self.prompts_used = 0
        self.groups: list[Group] = []
        self.slots: list[Slot] = []
        self.clock = PhaseClock()
        self.scorer = parts.make_scorer(self.clock)
        self.trace = [(time.perf_counter(), "step", "start")]
        self.planned = 0.0  # denominator that backward used
        self.train_tokens = 0
        self.loss_sums: dict[str, torch.Tensor] = {}
        self.sampling_sums: dict[str, torch.Tensor] = {}

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
            loss_sums=self.loss_sums,
            sampling_sums=self.sampling_sums,
            human_weight=self.human_weight,
            prompts_used=self.prompts_used,
            num_tokens=sum(len(r.completion_ids) for r in self._policy_rows()),
            train_tokens=self.train_tokens,
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
                assign_advantages(ready, self.config, self.human_weight)
                for group in ready:
                    self._train(group)
                    self.view.advance(1, phase="training")

    def _batches(self, groups: list[Group]) -> Iterator[list[Group]]:
        """Groups one by one as they become ready; all at once where statistics span the batch."""
        ready = self.scorer.ready_groups(groups, fixed_order=self.parts.fixed_order)
        if self.config.scale_rewards == "batch":
            yield list(ready)
            return
        for group in ready:
            yield [group]

    def _train(self, group: Group) -> None:
        self.trace.append((time.perf_counter(), "train", f"start {group.index}"))
        rows = [row for row in group.rows if row.trained]
        for chosen in self._plan(rows):
            self.parts.check_stop()
            batch = pack_rows(chosen, self.engine.device)
            ref_logps = self.engine.ref_logps(batch) if self.config.beta > 0 else None
            slot = Slot(batch, chosen, ref_logps)
            slot.old_logps = self._backward(slot, self.planned)
            gap = sampling_gap(slot, slot.old_logps)
            self.sampling_sums = merge_metrics([self.sampling_sums, gap])
            if self.config.num_iterations > 1:
                self.slots.append(slot)
        self.trace.append((time.perf_counter(), "train", f"end {group.index}"))

    def _plan(self, rows: list[Row]) -> list[list[Row]]:
        if not rows:
            return []
        slots = plan_slots(
            [row.num_tokens for row in rows],
            self.config.packing.max_tokens_per_microbatch,
            cost=self.parts.row_cost,
        )
        return [[rows[i] for i in slot] for slot in slots]

    def _backward(self, slot: Slot, denominator: float) -> torch.Tensor:
        rows = loss_rows(slot, denominator)
        out = self.engine.backward(slot.batch, rows)
        self.loss_sums = merge_metrics([self.loss_sums, out.metrics])
        self.train_tokens += len(slot.batch.input_ids)
        return out.logps

    def _update_all(self) -> list[UpdateResult]:
        """The first update ends the overlapped pass; the others go over the same slots again."""
        actual = self._denominator([r for g in self.groups for r in g.rows if r.trained])
        if actual == 0:
            self.view.warn(f"step {self.step + 1}: no group could be trained, no update")
            self.engine.skip_updates(self.config.num_iterations)
            return []
        scale = self.planned / actual
        for name in ("sum_loss", "sum_loss_human"):
            self.loss_sums[name] = self.loss_sums[name] * scale
        with self.clock.phase("optimizer"):
            updates = [self.engine.update(scale)]
        for _ in range(1, self.config.num_iterations):
            self.loss_sums = {}
            with self.clock.phase("train"):
                # No stop from here on: the weights have moved, a step is whole or not at all.
                for slot in self.slots:
                    self._backward(slot, actual)
            with self.clock.phase("optimizer"):
                updates.append(self.engine.update(1.0))
        return updates

    def _denominator(self, rows: list[Row]) -> float:
        """Loss tokens for token means, rows for sequence means, over the global batch."""
        if self.parts.spec.resolved_aggregation == "token_mean":
            return float(sum(len(row.completion_ids) for row in rows))
        return float(len(rows))


def sampling_gap(slot: Slot, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    """|trainer's - rollout engine's log-prob| of policy tokens: the same weights made both.

    `sum_filter_gain` is what penalty, top-k and top-p add to the log-prob of the tokens they keep.
    """
    nan = float("nan")
    engine = slot.batch.gather_targets([row.rollout_logps for row in slot.rows], missing=nan)
    filtered = slot.batch.gather_targets([row.sampler_logps for row in slot.rows], missing=nan)
    sampled = ~engine.isnan()
    gap = torch.where(sampled, (logps - engine).abs(), 0.0)
    return {
        "sum_sampling_gap": gap.sum(),
        "sum_filter_gain": torch.where(sampled, filtered - engine, 0.0).sum(),
        "num_sampled_tokens": sampled.sum(),
        "max_sampling_gap": gap.max() if gap.numel() else gap.sum(),
    }


def loss_rows(slot: Slot, denominator: float) -> LossRows:
    """The loss's view of a slot: per-row values by row id, per-token values in packed order."""
    device = slot.batch.input_ids.device
    return LossRows(
        row_of_token=slot.batch.target_row,
        num_rows=len(slot.rows),
        advantages=torch.tensor([row.advantage for row in slot.rows], device=device),
        is_human=torch.tensor([row.kind is RowKind.HUMAN for row in slot.rows], device=device),
        old_logps=slot.old_logps,
        ref_logps=slot.ref_logps,
        denominator=denominator,
    )
