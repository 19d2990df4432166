"""Human stories as training rows: the prompt, then thinking (if on), story and end of turn."""

from __future__ import annotations

from collections.abc import Sequence

from ..groups import human_row
from ..prompts import PromptBuilder, has_human_row
from ..types import Row, RowKind, StoryRecord, UserError


def story_records(records: Sequence[StoryRecord], builder: PromptBuilder) -> list[StoryRecord]:
    """Those with a story to train on, see `hri.missing_reasoning`.

    Raises:
        UserError: none has one; or one does not fit.
    """
    kept = [record for record in records if has_human_row(record, builder.config)]
    if not kept:
        raise UserError(
            f"data.path: none of the {len(records)} training records has a story to train on; give "
            "records with `story` (and `reasoning` where data.thinking is on)"
        )
    for record in kept:
        story_row(record, builder, 0, 0)
    return kept


def story_row(record: StoryRecord, builder: PromptBuilder, step: int, place: int) -> Row:
    """The row of one record; advantage 1 makes the policy gradient that of -log p."""
    name = f"sft/{step}/{place}"
    slot = Row(name, place, 0, RowKind.HUMAN, record, builder.prompt_ids(record))
    row = human_row(record, builder, slot)
    row.advantage = 1.0
    return row
