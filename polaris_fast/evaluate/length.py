"""How far a story's length is from what was asked: ratio, |ln|, shares within, LongBench-Write S_L.

w words written · T words asked for, at least 1. An empty story has ratio 0 and S_L 0.
"""

from __future__ import annotations

from ..text_stats import abs_log_ratio, is_within

NEAR, FAR = 0.10, 0.20  # shares of T within which a length counts as met


def length_measures(words: int, target: int) -> dict[str, float]:
    """Every measure of one story's length.

    Raises:
        ValueError: target is below 1.
    """
    if target < 1:
        raise ValueError(f"length_measures: target must be at least 1 word, got {target}")
    return {
        "words": float(words),
        "length_ratio": words / target,
        "abs_log_ratio": abs_log_ratio(words, target),
        "within_10": float(is_within(words, target, NEAR)),
        "within_20": float(is_within(words, target, FAR)),
        "s_l": length_score(words, target),
    }


def length_score(words: int, target: int) -> float:
    """S_L of LongBench-Write (arXiv 2408.07055), in [0, 100].

    100 max(0, 1 - (w/T - 1) / 3) for w > T, else 100 max(0, 1 - (T/w - 1) / 2).
    """
    if words <= 0:
        return 0.0
    if words > target:
        return 100.0 * max(0.0, 1.0 - (words / target - 1.0) / 3.0)
    return 100.0 * max(0.0, 1.0 - (target / words - 1.0) / 2.0)
