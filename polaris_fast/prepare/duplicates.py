"""Near-duplicates: candidates from a MinHash index, each checked on the true sets of 5-grams.

    Jaccard      |A & B| / |A | B|     two printings of one story
    containment  |A & B| / min(|A|, |B|)   an excerpt of a longer one

Candidates agree on one of 64 bands of 2 rows: two texts of Jaccard similarity s do so with
probability 1 - (1 - s^2)^64, which is .999 at .32 and .93 at .2 (Leskovec et al., Mining of Massive
Datasets, section 3.4). Smaller shares of text, and short excerpts, are found by `shared_text`.
Exact copies are no candidates: n of them would be n (n - 1) / 2 pairs; see `exact_copies`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .fingerprints import NUM_PERM
from .shared_text import RELATED

BANDS = NUM_PERM // 2  # of 2 rows


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
    """Signatures of all stories, and the pairs that agree on a band.

    A band's equal values are found by sorting: half a KiB a story, where a table of buckets
    (datasketch's `MinHashLSH`) takes 21.
    """

    def __init__(self) -> None:
        self._signatures = bytearray()  # (N, 128) uint32

    def add(self, values: np.ndarray) -> None:
        """Append the next story's signature, (128,) uint32."""
        self._signatures += values.tobytes()

    def pairs(self, numbers: Sequence[int] | None = None) -> list[tuple[int, int]]:
        """Numbers of stories that agree on at least one band, each pair once, in order.

        Args:
            numbers: the stories to be paired, rising; None: all.
        """
        bands = np.frombuffer(self._signatures, np.uint64).reshape(-1, BANDS)  # 2 rows each
        names = np.arange(len(bands)) if numbers is None else np.array(numbers, int)
        bands = bands[names]
        found: set[tuple[int, int]] = set()
        for band in bands.T:
            order = np.argsort(band, kind="stable")
            ends = np.flatnonzero(np.diff(band[order])) + 1
            if len(ends) + 1 < len(order):  # some are equal
                for run in np.split(order, ends):
                    found.update(combinations(names[run].tolist(), 2))
        return sorted(found)


def exact_copies(ranks: Sequence[tuple[int, str]]) -> dict[int, int]:
    """Number of each story whose text another one has, to the number of the one that stays.

    Args:
        ranks: (words, uid) of each story, by its number; the uid is the text's hash.
    """
    best: dict[str, int] = {}
    for number, (words, uid) in enumerate(ranks):
        if uid not in best or words > ranks[best[uid]][0]:
            best[uid] = number
    return {n: best[uid] for n, (_, uid) in enumerate(ranks) if best[uid] != n}


def compare(
    candidates: Iterable[tuple[int, int]], grams: Callable[[int], np.ndarray]
) -> list[Pair]:
    """Pairs with a containment of at least `RELATED`.

    Args:
        grams: the sorted set of a story's 5-grams, (G,) uint32, by its number.
    """
    pairs = []
    held, a = -1, np.zeros(0, np.uint32)  # candidates in order have the same first one for a while
    for first, second in candidates:
        if first != held:
            held, a = first, grams(first)
        b = grams(second)
        common = len(np.intersect1d(a, b, assume_unique=True))
        if common < RELATED * min(len(a), len(b)):
            continue
        jaccard = common / (len(a) + len(b) - common)
        pairs.append(Pair(first, second, jaccard, common / min(len(a), len(b))))
    return pairs


def choose(
    pairs: Iterable[Pair],
    rank: Callable[[int], tuple[int, str]],
    *,
    threshold: float,
    contained: float,
) -> list[Twin]:
    """Which stories to leave out: of two that are alike the longer one stays.

    Args:
        rank: (words, uid) of a story, by its number: of two equally long ones the lower uid stays,
            so that the order of files changes nothing.
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
    places = {number: (-words, uid, number) for number in alike for words, uid in [rank(number)]}
    for number in sorted(alike, key=places.__getitem__):
        rivals = [p for p in alike[number] if (p.first if p.second == number else p.second) in kept]
        if not rivals:
            kept.add(number)
            continue
        best = max(rivals, key=lambda p: (p.jaccard, p.containment))
        other = best.first if best.second == number else best.second
        twins.append(Twin(number, other, best.jaccard, best.containment))
    return sorted(twins, key=lambda twin: twin.dropped)
