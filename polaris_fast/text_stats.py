"""Counts and rates of a text: words, visible characters, repeated 4-grams and lines.

Pure functions of strings, shared by the rewards and the local heuristic judge. A token is a
lower-cased run of word characters or one other non-space character; a word is what
`count_words` counts. A repeat is every occurrence after the first.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Hashable, Iterator, Sequence
from typing import Literal

WordCounter = Literal["whitespace", "word_chars"]

NGRAM = 4

_TOKEN = re.compile(r"\w+|[^\w\s]")
_WORD = re.compile(r"\w+")


def count_words(text: str, counter: WordCounter = "whitespace") -> int:
    """Words of `text` after HTML entities are unescaped.

    Args:
        counter: `whitespace` counts runs of non-space characters; `word_chars` counts runs of
            word characters, so a contraction is two.
    """
    plain = html.unescape(text)
    if counter == "whitespace":
        return len(plain.split())
    return sum(1 for _ in _WORD.finditer(plain))


def abs_log_ratio(words: int, target: int) -> float:
    """|ln(words / target)|; an empty story counts as one word: ln 0 would hide every other."""
    return abs(math.log(max(words, 1) / target))


def is_within(words: int, target: int, share: float) -> bool:
    """Whether `words` is within `share` (0.2: 20 %) of `target`, bounds included."""
    return abs(words - target) <= share * target


def visible_share(text: str) -> float:
    """Share of characters that print and are no space, in [0, 1]; 0 for an empty text."""
    if not text:
        return 0.0
    return sum(c.isprintable() and not c.isspace() for c in text) / len(text)


def tokenize(text: str) -> list[str]:
    """Lower-cased runs of word characters and single other non-space characters."""
    return _TOKEN.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int = NGRAM) -> list[tuple[str, ...]]:
    """Consecutive n-grams, empty when there are fewer than n tokens."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def repeated_share(items: Sequence[Hashable]) -> float:
    """Share of items that already occurred before, in [0, 1); 0 for an empty sequence."""
    return 1.0 - len(set(items)) / len(items) if items else 0.0


def local_repeated_share(items: Sequence[Hashable], reach: int) -> float:
    """Share of items that occur among the `reach` items before them, in [0, 1)."""
    last: dict[Hashable, int] = {}
    hits = 0
    for i, item in enumerate(items):
        hits += i - last.get(item, -reach - 1) <= reach
        last[item] = i
    return hits / len(items) if items else 0.0


def duplicate_lines(text: str) -> float:
    """Share of non-empty stripped lines that repeat an earlier one, in [0, 1)."""
    return repeated_share([line for raw in text.splitlines() if (line := raw.strip())])


def token_windows(text: str, window: int, stride: int) -> Iterator[list[str]]:
    """Tokens of overlapping windows of whitespace words; the last one may be shorter.

    A text of at most `window` words is one window, and every word is in at least one.
    """
    words = text.split()
    start = 0
    while True:
        yield tokenize(" ".join(words[start : start + window]))
        if start + window >= len(words):
            return
        start += stride
