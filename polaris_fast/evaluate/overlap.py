"""How much of a story stands word for word in the training stories: shares of known 8-grams."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..text_stats import ngrams, tokenize

NGRAM = 8


class ReferenceIndex:
    """The n-grams of a set of stories, as 64-bit hashes: 8 bytes each, a few tens of MB a corpus.

    Hashes differ from process to process; an index is not to be stored.
    """

    def __init__(self, stories: Iterable[str], n: int = NGRAM) -> None:
        """
        Args:
            stories: the references.
            n: tokens of a gram (see `text_stats.tokenize`).
        """
        self.n = n
        hashed = [_hashes(story, n) for story in stories]
        self._known = np.unique(np.concatenate(hashed)) if hashed else np.empty(0, np.int64)

    def share(self, story: str) -> float:
        """Share of the story's n-grams that a reference holds, in [0, 1]; 0 without n-grams."""
        own = _hashes(story, self.n)
        if not len(own) or not len(self._known):
            return 0.0
        place = np.searchsorted(self._known, own).clip(max=len(self._known) - 1)
        return float((self._known[place] == own).mean())


def _hashes(story: str, n: int) -> np.ndarray:
    grams = ngrams(tokenize(story), n)
    return np.fromiter((hash(gram) for gram in grams), np.int64, len(grams))
