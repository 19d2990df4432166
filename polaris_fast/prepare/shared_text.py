"""Pairs of stories with a passage in common, by an index from each word 5-gram to its stories.

    shared(a, b) >= SURE * RELATED * min(|a|, |b|)     on the 5-grams that are indexed

MinHash finds texts that are alike as wholes; a tenth of a story inside a longer one escapes it. The
index holds all 5-grams of a small corpus, of a large one those whose hash is a multiple of 2, 4 or
8. At 8, with 1,000 words in the shorter story and exactly a tenth of them shared, a pair is missed
when at most 2 of 100 shared 5-grams are indexed: twice in ten thousand; longer ones hardly ever.

A 5-gram of more than `MANY` stories is a phrase of the language, or a passage that they all share:
it pairs only the shortest of them with the others. That ties them all: whatever passage is a tenth
of some story among them is a tenth of the shortest. Not found is a tenth that is pieced together
from several passages of that kind, each with another shortest story.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

RELATED = 0.1  # containment above which two stories must not be on both sides of the split
SURE = 0.3  # of what is expected: candidates are checked on the true sets afterwards
MANY = 8  # stories: all pairs of them are counted up to here
MAX_RATE = 8
FULL_INDEX = 2**21  # words of all stories, 8 bytes each
_MERGE = 2**20  # pairs that are counted together


def sharing_pairs(
    words: Sequence[int], grams: Callable[[int], np.ndarray], *, rate: int | None = None
) -> list[tuple[int, int]]:
    """Numbers of stories that probably share `RELATED` of the shorter one, in order.

    Args:
        words: of each story, by its number.
        grams: the sorted set of a story's 5-grams, (G,) uint32, by its number.
        rate: one 5-gram in this many is indexed, a power of two; None: by the size of the corpus.
    """
    rate = _rate(sum(words)) if rate is None else rate
    numbers = np.array(sorted(range(len(words)), key=lambda n: (words[n], n)))  # shortest first
    sizes = np.zeros(len(words), np.int64)
    postings = _postings(numbers.tolist(), grams, rate, sizes)
    pairs, counts = _counted(_shared(postings))
    first, second = (pairs >> np.uint64(32)).astype(int), (pairs & np.uint64(2**32 - 1)).astype(int)
    least = np.maximum(1, (SURE * RELATED * np.minimum(sizes[first], sizes[second])).astype(int))
    enough = counts >= least
    a, b = numbers[first[enough]], numbers[second[enough]]
    return sorted(zip(np.minimum(a, b).tolist(), np.maximum(a, b).tolist(), strict=True))


def _rate(words: int) -> int:
    rate = 1
    while rate < MAX_RATE and words > rate * FULL_INDEX:
        rate *= 2
    return rate


def _postings(
    numbers: Sequence[int], grams: Callable[[int], np.ndarray], rate: int, sizes: np.ndarray
) -> np.ndarray:
    """Indexed 5-grams of more than one story, each with the rank of a story: (P,) uint64, sorted.

    Args:
        sizes: (N,) int64; filled in with how many 5-grams of a story are indexed, by its rank.
    """
    index = bytearray()
    for rank, number in enumerate(numbers):
        found = grams(number)
        found = found[found & np.uint32(rate - 1) == 0].astype(np.uint64)
        sizes[rank] = len(found)
        index += ((found << np.uint64(32)) | np.uint64(rank)).tobytes()
    postings = np.frombuffer(index, "<u8")
    postings.sort()
    keys = postings.view("<u4")[1::2]  # the upper halves, without a copy
    same = keys[1:] == keys[:-1]
    shared = np.zeros(len(postings), bool)
    shared[1:] |= same
    shared[:-1] |= same
    return postings[shared]


def _shared(postings: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of ranks that have a 5-gram in common, once for each: (n,) uint64, the lower on top."""
    changes = np.flatnonzero(postings[1:] ^ postings[:-1] >= np.uint64(2**32)) + 1
    starts = np.concatenate(([0], changes))
    lengths = np.diff(np.concatenate((starts, [len(postings)])))
    for num in range(2, MANY + 1):
        first, second = np.triu_indices(num, 1)
        some = starts[lengths == num]
        for at in range(0, len(some), _MERGE // len(first)):
            begins = some[at : at + _MERGE // len(first), None]
            yield _pairs(postings, begins + first, begins + second)
    for start, length in zip(
        starts[lengths > MANY].tolist(), lengths[lengths > MANY].tolist(), strict=True
    ):
        others = np.arange(start + 1, start + length)
        yield _pairs(postings, np.full(length - 1, start), others)


def _pairs(postings: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    low = np.uint64(2**32 - 1)
    return (((postings[first] & low) << np.uint64(32)) | (postings[second] & low)).ravel()


def _counted(parts: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(different pairs, how often each was there); a bounded number of them waits to be counted."""
    pairs, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    waiting: list[np.ndarray] = []
    num = 0
    for part in parts:
        waiting.append(part)
        num += len(part)
        if num > max(_MERGE, len(pairs)):
            pairs, counts = _merged(pairs, counts, waiting)
            waiting, num = [], 0
    return _merged(pairs, counts, waiting) if waiting else (pairs, counts)


def _merged(
    pairs: np.ndarray, counts: np.ndarray, waiting: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    new, more = np.unique(np.concatenate(waiting), return_counts=True)
    together = np.concatenate((pairs, new))
    order = np.argsort(together, kind="stable")
    ordered = together[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    return ordered[starts], np.add.reduceat(np.concatenate((counts, more))[order], starts)
