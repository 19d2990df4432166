"""Groups of a step before generation: prompts drawn from the data, human rows in their slots."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .config import HRIConfig
from .prompts import PromptBuilder, has_human_row
from .types import FinishReason, Group, Row, RowKind, StoryRecord


def hri_weight(config: HRIConfig, step: int) -> float:
    """w * min(1, step / warmup) at step (from 0): the paper's ramp of the human row's weight."""
    if config.mode == "off":
        return 0.0
    if config.mode == "luffy":  # inside the statistics from the first step on, unweighted
        return 1.0
    ramp = 1.0 if config.warmup_steps == 0 else min(1.0, step / config.warmup_steps)
    return config.weight * ramp


def build_groups(
    records: Sequence[StoryRecord],
    builder: PromptBuilder,
    *,
    step: int,
    num_generations: int,
    human_weight: float,
    first_index: int = 0,
) -> list[Group]:
    """One group a record: the human row replaces the last rollout while its weight is not 0.

    Args:
        records: the step's prompts.
        builder: renders prompts and human completions.
        step: optimizer steps done, names the rows.
        num_generations: rows of a group, G.
        human_weight: weight of the human row at this step; at 0 its slot is one more rollout.
        first_index: index of the first group (groups added later in a step count on).
    """
    groups = []
    for index, record in enumerate(records, start=first_index):
        prompt_ids = builder.prompt_ids(record)
        rows = [
            Row(f"{step}/{index}/{slot}", index, slot, RowKind.POLICY, record, prompt_ids)
            for slot in range(num_generations)
        ]
        if human_weight > 0 and has_human_row(record, builder.config):
            rows[-1] = human_row(record, builder, rows[-1])
        groups.append(Group(index=index, record=record, rows=rows))
    return groups


def human_row(record: StoryRecord, builder: PromptBuilder, place: Row) -> Row:
    """The human story in the slot of `place`, complete as a rollout would be."""
    assert record.story is not None
    return Row(
        row_id=place.row_id,
        group=place.group,
        slot=place.slot,
        kind=RowKind.HUMAN,
        record=record,
        prompt_ids=place.prompt_ids,
        completion_ids=builder.human_completion_ids(record),
        finish_reason=FinishReason.STOP,
        thinking=record.reasoning or "" if builder.config.data.thinking else "",
        story=record.story,
    )


def row_seed(run_seed: int, row_id: str) -> int:
    """63-bit seed of a row's random stream: a function of the run's seed and the row alone."""
    digest = hashlib.sha256(f"{run_seed}/{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
