"""The rollouts of one step: groups from prompts, written row by row, each judged as it ends.

A batch is written right before its step trains, or ahead of it by `writing_ahead`. Rows that a
resumed run has written before are taken over as they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .config import Config
from .groups import build_groups, row_seed
from .metrics import PhaseClock
from .progress import Progress
from .prompts import PromptBuilder
from .rollout import Completion, RolloutEngine, RolloutRequest, SamplingParams
from .scoring import StepScorer
from .types import Group, Row, RowKind, StoryRecord, VersionSpan


@dataclass
class Batch:
    """What one step trains on."""

    step: int  # optimizer steps before it
    human_weight: float
    clock: PhaseClock
    scorer: StepScorer  # books its waits on the clock
    groups: list[Group] = field(default_factory=list)
    prompts_used: int = 0
    generation_s: float = 0.0  # that the rollout engine wrote
    trace: list[tuple[float, str, str]] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.groups for row in group.rows]

    def book_on(self, clock: PhaseClock) -> None:
        """From here on its time counts on another clock: that of the step that trains it."""
        self.clock = self.scorer.clock = clock


class BatchWriter:
    """Makes batches; owns no state but its parts."""

    def __init__(
        self,
        config: Config,
        *,
        rollouts: RolloutEngine,
        builder: PromptBuilder,
        make_scorer: Callable[[PhaseClock], StepScorer],
        view: Progress,
        earlier: Mapping[str, Completion] | None = None,
    ) -> None:
        """
        Args:
            make_scorer: a fresh scorer for each batch, booking its waits on the batch's clock.
            earlier: completions by row id that need not be written again.
        """
        self.config, self.rollouts, self.builder = config, rollouts, builder
        self.make_scorer, self.view, self.earlier = make_scorer, view, dict(earlier or {})
        self.sampling = SamplingParams.from_config(config, builder.stop_ids)

    def begin(self, step: int, human_weight: float) -> Batch:
        """A batch without groups."""
        clock = PhaseClock()
        return Batch(step, human_weight, clock, self.make_scorer(clock))

    def write(
        self, batch: Batch, records: Sequence[StoryRecord], on_token: Callable[[int], None]
    ) -> list[Group]:
        """Add a group a record; each row is submitted to its judge the moment it ends.

        Args:
            on_token: see `RolloutEngine.generate`.
        """
        groups = build_groups(
            records,
            self.builder,
            step=batch.step,
            num_generations=self.config.num_generations,
            human_weight=batch.human_weight,
            first_index=len(batch.groups),
        )
        batch.prompts_used += len(records)
        batch.groups += groups
        rows = [row for group in groups for row in group.rows]
        self.view.phase("judging", len(rows))
        for row in rows:
            if row.kind is RowKind.HUMAN:
                batch.scorer.submit(row)
        policy = [row for row in rows if row.kind is RowKind.POLICY]
        self.view.phase("writing", len(policy))
        left = [row for row in policy if row.row_id not in self.earlier]
        for row in policy:
            if row.row_id in self.earlier:
                self._finish(batch, row, self.earlier.pop(row.row_id))
        begun = time.perf_counter()
        self.rollouts.generate(
            [
                RolloutRequest(tuple(r.prompt_ids), row_seed(self.config.seed, r.row_id))
                for r in left
            ],
            self.sampling,
            lambda index, completion: self._finish(batch, left[index], completion),
            on_token,
        )
        batch.generation_s += time.perf_counter() - begun
        batch.trace.append((time.perf_counter(), "rollout", "end"))
        return groups

    def _finish(self, batch: Batch, row: Row, completion: Completion) -> None:
        row.completion_ids = completion.completion_ids
        row.rollout_logps = completion.rollout_logps
        row.sampler_logps = completion.sampler_logps
        own = VersionSpan(batch.step, 0, len(completion.completion_ids))
        row.versions = completion.versions or (own,)
        row.thinking, row.story = self.builder.decode(completion.completion_ids)
        row.finish_reason = completion.finish_reason  # last: who sees it sees a whole row
        batch.scorer.submit(row)
        self.view.advance(1, phase="writing")
