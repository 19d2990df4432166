"""What is to be written: every prompt at every length, several times, the same for every model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..groups import row_seed
from ..types import StoryRecord, UserError


@dataclass(frozen=True)
class Task:
    """One story to be written."""

    record: StoryRecord  # its target is the length that is asked for
    sample: int  # from 0, among the stories of this prompt and length
    seed: int  # of its random stream

    @property
    def item(self) -> str:
        """What stories of different models are compared at: prompt, length and sample."""
        return f"{self.record.uid}/{self.record.target_word_count}/{self.sample}"


def make_tasks(
    records: Sequence[StoryRecord],
    *,
    words: Sequence[int] | None,
    num_prompts: int | None,
    num_samples: int,
    seed: int,
) -> list[Task]:
    """Prompts x lengths x samples, short ones first: rows of one batch end about together.

    Args:
        records: the prompts.
        words: lengths to ask for, each of every prompt; None: the records' own.
        num_prompts: how many of the prompts, the same ones whatever their order; None: all.
        num_samples: stories for each prompt and length.
        seed: of the evaluation.

    Raises:
        UserError: a number below 1.
    """
    for option, value in (("--num-prompts", num_prompts), ("--samples", num_samples)):
        if value is not None and value < 1:
            raise UserError(f"{option}: must be at least 1, got {value}")
    if words is not None and (not words or min(words) < 1):
        raise UserError(f"--words: must be numbers of at least 1, got {','.join(map(str, words))}")
    if num_prompts is not None:
        records = in_drawn_order(records)[:num_prompts]
    asked = [
        replace(record, target_word_count=target)
        for record in records
        for target in (words or [record.target_word_count])
    ]
    asked.sort(key=lambda record: record.target_word_count)
    return [
        Task(record, n, row_seed(seed, f"evaluate/{record.uid}/{record.target_word_count}/{n}"))
        for record in asked
        for n in range(num_samples)
    ]


def in_drawn_order(records: Sequence[StoryRecord]) -> list[StoryRecord]:
    """By a hash of their uids: the first ones are a draw from all, the same for any file order."""
    return sorted(records, key=lambda r: hashlib.sha256(r.uid.encode()).digest())
