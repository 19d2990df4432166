"""Near-duplicates: candidates from a MinHash index, each checked on the true sets of 5-grams.

    Jaccard      |A & B| / |A | B|     two printings of one story
    containment  |A & B| / min(|A|, |B|)   an excerpt of a longer one

The index has 64 bands of 2 rows: a pair of Jaccard similarity s is a candidate with probability
1 - (1 - s^2)^64, which is .999 at .32 and .93 at .2 (Leskovec et al., Mining of Massive Datasets,
section 3.4). An excerpt of less than a fifth of the other text may therefore be missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from datasketch import MinHash, MinHashLSH

from .fingerprints import NUM_PERM

BANDS, ROWS = 64, 2
RELATED = 0.1  # containment above which two stories must not be on both sides of the split


@dataclass(frozen=True, slots=True)
class Pair:
    """Two stories with text in common, by their numbers, `first` < `second`."""

    first: int
    second: int
    jaccard: float
    containment: float


@dataclass(frozen=True, slots=True)
class Twin:
    """A story that is left out, and the one that is kept instead."""

    dropped: int
    kept: int
    jaccard: float
    containment: float


class Candidates:
    """The index; a story is compared with those before it."""

    def __init__(self) -> None:
        self._index = MinHashLSH(num_perm=NUM_PERM, params=(BANDS, ROWS))
        self.pairs: list[tuple[int, int]] = []

    def add(self, number: int, values: np.ndarray) -> None:
        """Look up a story's signature, then remember it. `values`: (128,) uint32."""
        sketch = MinHash(hashvalues=values, permutations=_PERMUTATIONS, scheme="affine32")
        self.pairs += [(other, number) for other in sorted(self._index.query(sketch))]
        self._index.insert(number, sketch, check_duplication=False)


_PERMUTATIONS = MinHash(num_perm=NUM_PERM, seed=1).permutations


def compare(
    candidates: Iterable[tuple[int, int]], grams: Callable[[int], np.ndarray]
) -> list[Pair]:
    """Pairs with a containment of at least `RELATED`.

    Args:
        grams: the sorted set of a story's 5-grams, (G,) uint32, by its number.
    """
    pairs = []
    for first, second in candidates:
        a, b = grams(first), grams(second)
        common = len(np.intersect1d(a, b, assume_unique=True))
        if common < RELATED * min(len(a), len(b)):
            continue
        jaccard = common / (len(a) + len(b) - common)
        pairs.append(Pair(first, second, jaccard, common / min(len(a), len(b))))
    return pairs


def choose(
    pairs: Iterable[Pair], words: Callable[[int], int], *, threshold: float, contained: float
) -> list[Twin]:
    """Which stories to leave out: of two that are alike the longer one stays, else the earlier.

    Args:
        threshold: Jaccard similarity from which two stories are one.
        contained: containment from which the shorter is an excerpt of the longer.
    """
    alike: dict[int, list[Pair]] = {}
    for pair in pairs:
        if pair.jaccard >= threshold or pair.containment >= contained:
            alike.setdefault(pair.first, []).append(pair)
            alike.setdefault(pair.second, []).append(pair)
    kept: set[int] = set()
    twins = []
    for number in sorted(alike, key=lambda n: (-words(n), n)):
        rivals = [p for p in alike[number] if (p.first if p.second == number else p.second) in kept]
        if not rivals:
            kept.add(number)
            continue
        best = max(rivals, key=lambda p: (p.jaccard, p.containment))
        other = best.first if best.second == number else best.second
        twins.append(Twin(number, other, best.jaccard, best.containment))
    return sorted(twins, key=lambda twin: twin.dropped)
