"""Comparisons a thousand words: a pattern, no parser.

Counted: "like a", "like an", "like the", "like some..." where `like` is no verb by the word before
it; "as if", "as though"; "as ADJECTIVE as" without the fixed phrases ("as soon as"). Metaphors
without such a word are not seen, and "a dress like the other" is counted although it is none: the
number compares models, it does not grade a sentence.
"""

from __future__ import annotations

import re

from ..text_stats import count_words

PER_WORDS = 1000

_LIKE = re.compile(
    r"(?:(?P<before>[\w']+)[\s,;]+)?\blike\s+(?:an?|the|some|something|someone|somebody)\b"
)
_AS_IF = re.compile(r"\bas\s+(?:if|though)\b")
_AS_AS = re.compile(r"\bas\s+(?P<middle>\w+)\s+as\b")
# Words after which `like` is the verb, or "would like a", "looks like the" (a guess, no image).
_VERB_BEFORE = frozenset(
    "i you he she we they it who to not never would wouldn't d i'd you'd he'd she'd we'd they'd "
    "don't doesn't didn't do does did might may can could should will won't ll i'll always really "
    "also still just both all people things stuff".split()
)
_FIXED = frozenset("soon long well far much many little few early late often good quickly".split())
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'"})


def figurative_density(story: str) -> float:
    """Comparisons per 1,000 words; 0 for an empty story."""
    words = count_words(story)
    return PER_WORDS * count_comparisons(story) / words if words else 0.0


def count_comparisons(story: str) -> int:
    """Comparisons that the patterns find."""
    text = story.lower().translate(_APOSTROPHES)
    like = sum(match["before"] not in _VERB_BEFORE for match in _LIKE.finditer(text))
    as_as = sum(match["middle"] not in _FIXED for match in _AS_AS.finditer(text))
    return like + len(_AS_IF.findall(text)) + as_as
