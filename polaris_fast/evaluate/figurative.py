"""Figures of speech a thousand words: patterns, no parser.

Counted: "like a", "like an", "like the", "like some..." where `like` is no verb by the word before
it; "as if", "as though"; "as ADJECTIVE as" without the fixed phrases ("as soon as"); and an image
made of a feeling, "a cathedral of silence", without the literal ones ("a moment of silence").
"He was a lantern" is not seen, and "a dress like the other" is counted although it is none: the
number compares models and steps, it does not grade a sentence.
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
_FEELINGS = (
    "silence|grief|sorrows?|sadness|memory|memories|longing|yearning|regrets?|loneliness|solitude|"
    "despair|hope|hopes|dreams|absence|forgetting|forgetfulness|eternity|shame|guilt|desire|"
    "melancholy|nostalgia|heartbreak|betrayal|possibility|uncertainty|resilience"
)
_OF_FEELING = re.compile(
    r"\b(?:an?|the|his|her|my|our|their|its|your)\s+(?:[\w'-]+\s+)?(?P<head>[\w'-]+)\s+of\s+"
    rf"(?:(?:his|her|my|our|their|its|your|the|own|old|lost)\s+){{0,2}}(?:{_FEELINGS})\b"
)
# Words after which `like` is the verb, or "would like a", "looks like the" (a guess, no image).
_VERB_BEFORE = frozenset(
    "i you he she we they it who to not never would wouldn't d i'd you'd he'd she'd we'd they'd "
    "don't doesn't didn't do does did might may can could should will won't ll i'll always really "
    "also still just both all people things stuff".split()
)
_FIXED = frozenset("soon long well far much many little few early late often good quickly".split())
# Heads that measure, cause or name a feeling and picture nothing.
_LITERAL_HEADS = frozenset(
    "moment moments minute minutes hour hours day days night nights week weeks month months "
    "year years time times age period length stretch end beginning start middle lack loss kind "
    "sort type bit lot piece part rest amount degree depth full first last one none all any "
    "some most more sense feeling feelings idea thought talk word words sound look sign signs "
    "note hint trace face object subject source cause matter state act power price cost promise "
    "sake result fear people man woman story stories name realm question edge point".split()
)
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'"})


def figurative_density(story: str) -> float:
    """Figures of speech per 1,000 words; 0 for an empty story."""
    words = count_words(story)
    return PER_WORDS * count_figures(story) / words if words else 0.0


def count_figures(story: str) -> int:
    """Comparisons, and images made of feelings, that the patterns find."""
    text = story.lower().translate(_APOSTROPHES)
    like = sum(match["before"] not in _VERB_BEFORE for match in _LIKE.finditer(text))
    as_as = sum(match["middle"] not in _FIXED for match in _AS_AS.finditer(text))
    images = sum(match["head"] not in _LITERAL_HEADS for match in _OF_FEELING.finditer(text))
    return like + len(_AS_IF.findall(text)) + as_as + images
