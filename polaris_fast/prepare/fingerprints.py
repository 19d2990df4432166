"""What a story is recognised by: the set of its word 5-grams, and a MinHash signature of it."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import cache

import numpy as np
from datasketch import MinHash

NUM_PERM = 128
GRAM = 5
_WORD = re.compile(r"\w+(?:'\w+)*")
_AS_ONE = str.maketrans("\u2018\u2019", "''", "\u200c\u200d")  # quotes, and joiners of letters
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplication by it is a bijection of 64 bits


def normal_words(text: str) -> list[str]:
    """Words without case, accents of typography or punctuation: equal for one text set twice."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_AS_ONE)
    return _WORD.findall(text.casefold())


def grams_of(words: list[str]) -> np.ndarray:
    """Hashes of all word 5-grams: sorted, without doubles.

    Returns:
        (G,) uint32; a text of fewer than 5 words is one gram.
    """
    ids = np.array([_word_hash(word) for word in words], dtype=np.uint64)
    if len(ids) < GRAM:
        ids = np.pad(ids, (0, GRAM - len(ids)))
    mixed = np.zeros(len(ids) - GRAM + 1, dtype=np.uint64)
    for i in range(GRAM):
        mixed = (mixed ^ ids[i : len(ids) - GRAM + 1 + i]) * _MIX
        mixed ^= mixed >> np.uint64(29)
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def signature(grams: np.ndarray) -> np.ndarray:
    """MinHash of a set of grams. Returns: (128,) uint32."""
    sketch = _empty_sketch().copy()
    sketch.update_batch(grams.tolist())
    values: np.ndarray = sketch.hashvalues
    return values


@cache
def _empty_sketch() -> MinHash:
    """Its permutations are shared by all copies."""
    return MinHash(num_perm=NUM_PERM, seed=1, hashfunc=int)


@cache
def _word_hash(word: str) -> int:
    """64 bits that do not depend on the process, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
