"""The Story Quality rubric: its text, its 18 numbers, the JSON schema, and the total.

overall = sum(P) - sum(N) + bonus - penalty, always computed here and never taken from a judge;
quality = overall / 100. Ranges: positives 100 points, negatives 151, so overall is in [-159, 108].
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

POSITIVE = {"P1": 15, "P2": 20, "P3": 15, "P4": 15, "P5": 20, "P6": 15}
NEGATIVE = {
    "N1": 15, "N2": 20, "N3": 15, "N4": 15, "N5": 15,
    "N6": 20, "N7": 15, "N8": 8, "N9": 8, "N10": 20,
}  # fmt: skip
BONUS, PENALTY = "BONUS", "PENALTY"
MAX_SCORES = POSITIVE | NEGATIVE | {BONUS: 8, PENALTY: 8}
DIMENSIONS = tuple(MAX_SCORES)
MIN_OVERALL, MAX_OVERALL = -159, 108

PENALTY_CAP = 3  # of a story whose positives clearly outweigh its negatives
MAX_QUOTES = 3
POINTS_PER_QUALITY = 100


@cache
def rubric_text() -> str:
    """The judge's instructions, byte for byte the same in every request (prefix caches)."""
    return (resources.files(__package__) / "rubric.txt").read_text(encoding="utf-8")


@cache
def rubric_version() -> str:
    """A short hash of the rubric text and the score ranges."""
    content = rubric_text() + repr(MAX_SCORES)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def apply_caps(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores that count: bonus 0 if sum(N) > sum(P)/2; penalty <= 3 if sum(P) > 1.5 sum(N)."""
    positive = sum(scores[name] for name in POSITIVE)
    negative = sum(scores[name] for name in NEGATIVE)
    counted = dict(scores)
    if negative > positive / 2:
        counted[BONUS] = 0.0
    if positive > 1.5 * negative:
        counted[PENALTY] = min(scores[PENALTY], float(PENALTY_CAP))
    return counted


def plain_sum(scores: Mapping[str, float]) -> float:
    """sum(P) - sum(N) + bonus - penalty of the scores as they are."""
    return (
        sum(scores[name] for name in POSITIVE)
        - sum(scores[name] for name in NEGATIVE)
        + scores[BONUS]
        - scores[PENALTY]
    )


def overall(scores: Mapping[str, float]) -> float:
    """The total under the caps, in [-159, 108]."""
    return plain_sum(apply_caps(scores))


@cache
def judgement_schema() -> dict[str, Any]:
    """JSON schema of an answer, in the subset that strict structured output accepts."""
    return _object(
        {
            **{name: _dimension(maximum) for name, maximum in MAX_SCORES.items()},
            "overall": {"type": "number"},
            "summary": {"type": "string"},
        }
    )


def _dimension(maximum: int) -> dict[str, Any]:
    """The evidence comes before the score: a judge that writes in order must find it first."""
    return _object(
        {
            "justification": {"type": "string"},
            "quotes": {"type": "array", "items": {"type": "string"}, "maxItems": MAX_QUOTES},
            "score": {"type": "number", "minimum": 0, "maximum": maximum},
        }
    )


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
