"""The stories of an evaluation as one value a prompt, and how sure a difference of two is.

Stories of one prompt are no independent samples: they count as their mean. Where two evaluations
have the same prompts they are held against each other prompt by prompt, so that an easy prompt,
which is easy for both, is no noise.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np

from .stories import length_error, policy_rows

Prompt = tuple[str, int]  # uid and words asked for


def asked_prompts(rows: list[dict[str, Any]]) -> set[Prompt]:
    """The prompts of an evaluation, those without a scored story included."""
    return {_prompt(row) for row in rows if row.get("kind") == "policy"}


def prompt_values(rows: list[dict[str, Any]], key: str) -> dict[Prompt, float]:
    """Prompt -> mean of `reward`, `length/abs_log_ratio` or `reward/quality` of its stories."""
    found: dict[Prompt, list[float]] = {}
    for row in policy_rows(rows):
        value = length_error(row) if key == "length/abs_log_ratio" else _part(row, key)
        if isinstance(value, int | float) and math.isfinite(value):
            found.setdefault(_prompt(row), []).append(value)
    return {prompt: statistics.fmean(values) for prompt, values in found.items()}


def two_standard_errors(a: np.ndarray, b: np.ndarray, *, paired: bool) -> float | None:
    """Of the difference of two means; None with fewer than three values a side.

    Args:
        a: (n,) values.
        b: (m,) values; with `paired` the same n prompts in the same order.
    """
    if min(len(a), len(b)) < 3:
        return None
    if paired:
        return 2 * math.sqrt((a - b).var(ddof=1) / len(a))
    return 2 * math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))


def _prompt(row: dict[str, Any]) -> Prompt:
    target = row.get("target_word_count")
    return str(row.get("uid")), target if isinstance(target, int) else 0


def _part(row: dict[str, Any], key: str) -> Any:
    return row["reward"].get("total" if key == "reward" else key.removeprefix("reward/"))
