"""Stock phrases of machine prose, per 1,000 words.

`slop.txt` is the project's own list: words, phrases and names that language models reach for far
more often than published fiction does, chosen by reading. One entry a line; a `*` stands for the
rest of a word, `_` for any one word. It is English, it is short, and it dates: what it measures is
how often a story uses these phrases, not whether it is good.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from ..text_stats import count_words

PER_WORDS = 1000
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'"})


def slop_density(story: str) -> float:
    """Hits per 1,000 words; 0 for an empty story."""
    words = count_words(story)
    return PER_WORDS * len(find_slop(story)) / words if words else 0.0


def find_slop(story: str) -> list[str]:
    """The hits, in lower case, in order; of overlapping ones the longest that begins first."""
    return _pattern().findall(story.lower().translate(_APOSTROPHES))


@cache
def slop_entries() -> tuple[str, ...]:
    """The list, without comments."""
    text = (resources.files(__package__) / "slop.txt").read_text(encoding="utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(line for line in lines if line)


@cache
def _pattern() -> re.Pattern[str]:
    longest_first = sorted(slop_entries(), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(_entry, longest_first))})\b")


def _entry(entry: str) -> str:
    words = (r"[\w']+" if w == "_" else re.escape(w).replace(r"\*", r"\w*") for w in entry.split())
    return r"[\s,]+".join(words)
