"""Which stories the report shows, and their judged numbers, ready for the template."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..text_stats import abs_log_ratio
from .folder import RunFolder

EXCERPT_WORDS = 90  # shown at once; the rest opens on a click


@dataclass(frozen=True)
class Text:
    """A story in two parts: what is seen at once, and the rest."""

    opening: str
    rest: str
    rest_words: int


@dataclass(frozen=True)
class Pick:
    """One story of the report beside the human story for the same prompt."""

    rank: str  # best, median, worst, only
    of: int  # policy stories it was picked from
    row: dict[str, Any]
    story: Text
    human: dict[str, Any] | None
    human_story: Text | None


@dataclass(frozen=True)
class StepStories:
    """The picks of one step."""

    step: int
    picks: list[Pick]


def pick_steps(run: RunFolder) -> list[StepStories]:
    """Best, median and worst policy story, by reward, of the first and the last recorded step."""
    files = list(run.story_files)
    chosen = {step: _ranked(run.stories(step)) for step in sorted({*files[:1], *files[-1:]})}
    uids = {str(row.get("uid")) for ranked in chosen.values() for _, row in ranked[1]}
    humans = run.human_stories(uids) if uids else {}
    found = []
    for step, (count, ranked) in chosen.items():
        own = {r.get("group"): r for r in run.stories(step) if r.get("kind") == "human"}
        picks = [
            _pick(rank, count, row, own.get(row.get("group")) or humans.get(str(row.get("uid"))))
            for rank, row in ranked
        ]
        if picks:
            found.append(StepStories(step, picks))
    return found


def policy_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that the model wrote and that have a reward."""
    return [row for row in rows if row.get("kind") == "policy" and _total(row) is not None]


def length_error(row: dict[str, Any]) -> float | None:
    """|ln(words / target)| of a scored row, as in the metrics; None where either is missing."""
    words, target = (row.get("reward") or {}).get("words"), row.get("target_word_count")
    return abs_log_ratio(words, target) if words is not None and target else None


def split_text(text: str, words: int = EXCERPT_WORDS) -> Text:
    """Cut after `words` words; a short remainder stays with the opening."""
    total = len(text.split())
    if total <= words * 1.4:
        return Text(text.strip(), "", 0)
    found = re.match(rf"(?:\s*\S+){{{words}}}", text)
    cut = found.end() if found else len(text)
    return Text(text[:cut].strip(), text[cut:].strip(), total - words)


def _ranked(rows: list[dict[str, Any]]) -> tuple[int, list[tuple[str, dict[str, Any]]]]:
    scored = sorted(policy_rows(rows), key=lambda r: (-(_total(r) or 0.0), str(r.get("row_id"))))
    if len(scored) < 3:
        names = ("only",) if len(scored) == 1 else ("best", "worst")
        return len(scored), list(zip(names, scored, strict=False))
    middle = scored[len(scored) // 2]
    return len(scored), [("best", scored[0]), ("median", middle), ("worst", scored[-1])]


def _pick(rank: str, of: int, row: dict[str, Any], human: dict[str, Any] | None) -> Pick:
    human_story = split_text(str(human.get("story") or "")) if human else None
    return Pick(rank, of, row, split_text(str(row.get("story") or "")), human, human_story)


def _total(row: dict[str, Any]) -> float | None:
    total = (row.get("reward") or {}).get("total")
    return total if isinstance(total, int | float) else None
