"""Length bins of the recipe: 1-4K, 4-8K and 8-12K words, and what lies outside them."""

from __future__ import annotations

import itertools

EDGES = (1000, 4000, 8000, 12000)
BINS = tuple(f"{a // 1000}-{b // 1000}K" for a, b in itertools.pairwise(EDGES))
SHORTER, LONGER = "under 1K", "over 12K"
ALL_BINS = (SHORTER, *BINS, LONGER)


def bin_of(words: int) -> str:
    """The bin of a length; an edge belongs to the bin above it, the last one to the last bin."""
    if words < EDGES[0]:
        return SHORTER
    for name, high in zip(BINS, EDGES[1:], strict=True):
        if words < high or (high == EDGES[-1] and words == high):
            return name
    return LONGER
