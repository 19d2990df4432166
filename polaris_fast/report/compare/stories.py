"""Stories of all runs for the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..stories import Text, policy_rows, split_text
from .runs import Named

_NUM_PROMPTS = 3


@dataclass(frozen=True)
class Told:
    """A run's story for a prompt."""

    named: Named
    row: dict[str, Any]
    story: Text


@dataclass(frozen=True)
class SamePrompt:
    """One prompt and each run's story for it."""

    why: str
    prompt: str
    told: list[Told]


@dataclass(frozen=True)
class Pairs:
    """The stories, and where they come from; `found` is empty when no prompt is shared."""

    source: str
    found: list[SamePrompt]


def same_prompts(runs: Sequence[Named]) -> Pairs:
    """Up to three prompts that every run wrote on: where rewards differ most, middling and least.

    Held-out prompts at the end, when every run has them; else training prompts of the last
    recorded step. Of several stories a prompt the first is shown: no run's luck is picked.
    """
    held_out = [named.run.evals.get("end", {}).get("stories") or [] for named in runs]
    if all(held_out):
        return Pairs("held-out prompts, at the end", _pick(runs, held_out))
    last = [named.run.stories(max(named.run.story_files, default=0)) for named in runs]
    return Pairs("training prompts of each run's last step", _pick(runs, last))


def _pick(runs: Sequence[Named], rows: Sequence[list[dict[str, Any]]]) -> list[SamePrompt]:
    firsts = [_first_story_a_prompt(stories) for stories in rows]
    shared = [uid for uid in firsts[0] if all(uid in first for first in firsts)]
    by_spread = sorted(shared, key=lambda uid: -_spread([first[uid] for first in firsts]))
    middle = by_spread[len(by_spread) // 2 : len(by_spread) // 2 + 1]
    chosen = {uid: why for why, uid in _named_places(by_spread, middle)}
    return [
        SamePrompt(
            why,
            str(firsts[0][uid].get("prompt") or ""),
            [
                Told(named, first[uid], split_text(str(first[uid].get("story") or "")))
                for named, first in zip(runs, firsts, strict=True)
            ],
        )
        for uid, why in list(chosen.items())[:_NUM_PROMPTS]
    ]


def _named_places(by_spread: list[str], middle: list[str]) -> list[tuple[str, str]]:
    """Reversed in importance: where two places are the same prompt, the last name stays."""
    places = [("Rewards differ most", by_spread[:1])]
    if len(by_spread) > 2:
        places.append(("Rewards differ middlingly", middle))
    if len(by_spread) > 1:
        places.append(("Rewards differ least", by_spread[-1:]))
    return [(why, uid) for why, uids in places for uid in uids]


def _first_story_a_prompt(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    first: dict[str, dict[str, Any]] = {}
    for row in policy_rows(rows):
        first.setdefault(f"{row.get('uid')}/{row.get('target_word_count')}", row)
    return first


def _spread(rows: Sequence[dict[str, Any]]) -> float:
    totals = [float(row["reward"]["total"]) for row in rows]
    return max(totals) - min(totals)
