"""How rich a story's wording is: distinct n-grams over all n-grams (Li et al., arXiv 1510.03055).

The rate falls as a text grows, so it is the mean over windows of words, whole ones where there are
any: stories of 2,000 and of 12,000 words can be compared.
"""

from __future__ import annotations

from ..text_stats import ngrams, repeated_share, token_windows
from .repetition import STRIDE_WORDS, WINDOW_WORDS

ORDERS = (1, 2, 3)


def diversity_measures(story: str) -> dict[str, float]:
    """distinct-1, -2 and -3, in [0, 1]; 0 for a story without such n-grams."""
    windows = list(token_windows(story, WINDOW_WORDS, STRIDE_WORDS))
    whole = windows[:-1] or windows  # the last may be short, and would look richer than it is
    return {
        f"distinct_{n}": sum(_distinct(tokens, n) for tokens in whole) / len(whole) for n in ORDERS
    }


def _distinct(tokens: list[str], n: int) -> float:
    grams = ngrams(tokens, n)
    return 1.0 - repeated_share(grams) if grams else 0.0
