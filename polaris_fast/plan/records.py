"""Records that are on this machine, and what a configuration leaves to them: nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..data import load_records, split_records, with_thinking
from ..types import StoryRecord
from .assumptions import Assumptions
from .lengths import THINKING_TOKENS, TOKENS_PER_WORD


@dataclass(frozen=True)
class LocalRecords:
    """What of the data can be read here and now."""

    training: list[StoryRecord]  # empty: not known
    held_out: list[StoryRecord] | None  # None: not known


def local_records(config: Config) -> LocalRecords:
    """The records of files, folders and the bundled samples; none of a hub data set.

    Raises:
        UserError: they are here and cannot be read.
    """
    data = config.data
    is_unnamed = data.path is None and config.model_name_or_path is not None  # a shipped recipe
    if is_unnamed or not _is_here(data.path):
        holds_none_out = data.eval_path is None and not data.eval_fraction
        return LocalRecords([], [] if holds_none_out else None)
    if _is_here(data.eval_path):
        return LocalRecords(*split_records(data, load_records(data)))
    return LocalRecords(load_records(data), None)


def settled(
    config: Config, records: LocalRecords, assumed: Assumptions
) -> tuple[Config, tuple[str, ...]]:
    """`data.thinking` and `max_completion_length` as a run settles them; no tokenizer is loaded.

    Returns:
        The configuration, and a line for what was assumed because the records are not here.
    """
    notes = []
    elsewhere = "is left to the data, which is not on this machine (nothing is downloaded)"
    if config.data.thinking is None and not records.training:
        notes.append(f"data.thinking {elsewhere}: assumed to be off.")
    data = with_thinking(config.data, records.training)
    config = config.model_copy(update={"data": data})
    if config.max_completion_length is not None:
        return config, tuple(notes)
    if records.training:
        longest = _longest_completion(config, [*records.training, *(records.held_out or [])])
    else:
        words = min(int(assumed.longest_story_words), data.max_target_words or 10**9)
        longest = int(words * TOKENS_PER_WORD) + (THINKING_TOKENS if data.thinking else 0)
        notes.append(
            f"max_completion_length {elsewhere}: assumed for a longest human story of {words:,} "
            "words (longest_story_words)."
        )
    return config.with_room_for(longest), tuple(notes)


def _is_here(path: str | None) -> bool:
    return path is None or Path(path).exists()


def _longest_completion(config: Config, records: Sequence[StoryRecord]) -> int:
    """Tokens of the longest human row, its reasoning included where the policy thinks."""
    texts = [
        f"{r.reasoning or ''} {r.story}" if config.data.thinking else r.story
        for r in records
        if r.story is not None
    ]
    return int(max((len(text.split()) for text in texts), default=0) * TOKENS_PER_WORD)
