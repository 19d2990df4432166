"""How much a story says again, and how much the stories of one prompt say the same.

Whole-story n-gram rates rise with length, so 4-grams are counted in windows of words.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence

from ..text_stats import ngrams, repeated_share, token_windows, tokenize

WINDOW_WORDS, STRIDE_WORDS = 1000, 500
BLEU_ORDER = 4
BLEU_EPSILON = 0.1  # stands for zero matches: method 1 of Chen and Cherry, 2014


def repetition_measures(story: str) -> dict[str, float]:
    """Repeated 4-grams in windows (mean, maximum), and the compression ratio."""
    shares = [repeated_share(ngrams(t)) for t in token_windows(story, WINDOW_WORDS, STRIDE_WORDS)]
    return {
        "repetition_mean": sum(shares) / len(shares),
        "repetition_max": max(shares),
        "compression_ratio": compression_ratio(story),
    }


def compression_ratio(text: str) -> float:
    """UTF-8 bytes / bytes after deflate at level 9 (Shaib et al., arXiv 2403.00553); 0 if empty.

    More is more redundant. It rises with length: compare stories of one bucket.
    """
    raw = text.encode("utf-8", errors="replace")
    return len(raw) / len(zlib.compress(raw, 9)) if raw else 0.0


def self_bleu(stories: Sequence[str]) -> list[float]:
    """BLEU-4 of each story against the others (Zhu et al., arXiv 1802.01886), in [0, 1].

    1 means that the others hold everything it says, in its own order. At least two stories; an
    empty one has BLEU 0.

    Raises:
        ValueError: fewer than two stories.
    """
    if len(stories) < 2:
        raise ValueError(f"self_bleu: needs at least 2 stories, got {len(stories)}")
    tokens = [tokenize(story) for story in stories]
    counts = [[Counter(ngrams(t, n)) for n in range(1, BLEU_ORDER + 1)] for t in tokens]
    return [
        _bleu(
            tokens[i],
            counts[i],
            [len(t) for j, t in enumerate(tokens) if j != i],
            [c for j, c in enumerate(counts) if j != i],
        )
        for i in range(len(stories))
    ]


def _bleu(
    tokens: Sequence[str],
    counts: Sequence[Counter[tuple[str, ...]]],
    other_lengths: Sequence[int],
    others: Sequence[Sequence[Counter[tuple[str, ...]]]],
) -> float:
    """Geometric mean of clipped precisions, times the brevity penalty (Papineni et al., 2002)."""
    if not tokens:
        return 0.0
    logs = []
    for order, own in enumerate(counts):
        total = sum(own.values())
        if total == 0:  # shorter than the order: as many orders as there are
            break
        most: Counter[tuple[str, ...]] = Counter()
        for other in others:
            most |= other[order]
        matches = sum((own & most).values())
        logs.append(math.log((matches or BLEU_EPSILON) / total))
    length = len(tokens)
    closest = min(other_lengths, key=lambda other: (abs(other - length), other))
    brevity = min(0.0, 1.0 - closest / length)
    return math.exp(brevity + sum(logs) / len(logs))
