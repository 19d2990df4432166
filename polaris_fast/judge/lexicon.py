"""Which words are English, roughly, and what they are for: the bundled `lexicon.txt`.

Inflected forms are recognised by rule. The lists are small, so an unknown word is not taken for
a mistake at once: `plausibility` says how much its letters look like those of known words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib import resources

PHRASES = ("cliche", "moral", "figurative", "to_judge")
_VOWELS = set("aeiouy")


@cache
def sections() -> dict[str, frozenset[str]]:
    """Section name -> its words or phrases."""
    text = (resources.files(__package__) / "lexicon.txt").read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("["):
            name = line.strip("[] ")
            found[name] = set()
        elif line and not line.startswith("#"):
            found[name].update(entry.strip() for entry in line.split(",") if entry.strip())
    return {key: frozenset(entries) for key, entries in found.items()}


@cache
def phrase_pattern(name: str) -> re.Pattern[str]:
    """Matches any phrase of a list in lower-case text, longest first, at word ends only."""
    phrases = sorted(sections()[name], key=len, reverse=True)
    return re.compile("|".join(_bounded(phrase) for phrase in phrases))


@cache
def known_words() -> frozenset[str]:
    """All single words of all sections."""
    words = (entries for key, entries in sections().items() if key not in PHRASES)
    return frozenset().union(*words)


@lru_cache(maxsize=65536)
def base_form(word: str) -> str | None:
    """The listed word that `word` (lower case) is a form of; None if there is none."""
    words = known_words()
    return next((form for form in _forms(word) if form in words), None)


@lru_cache(maxsize=65536)
def in_section(word: str, name: str) -> bool:
    """Whether `word` or a base form of it is listed in a section."""
    entries = sections()[name]
    return any(form in entries for form in _forms(word))


@lru_cache(maxsize=65536)
def plausibility(word: str) -> float:
    """How English a word looks, in [0, 1]: 1 for listed words and their forms.

    Others get at most a half, by the share of their letter trigrams (with word ends) that occur
    in listed words, squared because even random letters hit some; nothing without a vowel.
    """
    if base_form(word) is not None:
        return 1.0
    if not word.isalpha() or not _VOWELS & set(word) or len(word) > 20:
        return 0.0
    grams = list(_trigrams(word))
    return 0.5 * (sum(gram in _known_trigrams() for gram in grams) / len(grams)) ** 2


@cache
def _known_trigrams() -> frozenset[str]:
    return frozenset(gram for word in known_words() for gram in _trigrams(word))


def _bounded(phrase: str) -> str:
    """The phrase as a pattern; a letter at its end may not go on ("as a" is not in "was a")."""
    left = r"\b" if phrase[0].isalnum() else ""
    right = r"\b" if phrase[-1].isalnum() else ""
    return left + re.escape(phrase) + right


def _trigrams(word: str) -> Iterator[str]:
    padded = f"^{word}$"
    return (padded[i : i + 3] for i in range(len(padded) - 2))


def _forms(word: str) -> Iterator[str]:
    """`word` and what is left when a regular ending is taken off."""
    yield word
    for ending in ("'s", "'", "'d", "'ll", "'re", "'ve", "'m", "n't"):
        if word.endswith(ending) and len(word) > len(ending):
            yield word.removesuffix(ending)
    if len(word) < 4:
        return
    for ending in ("s", "es", "d", "ed", "r", "er", "st", "est", "ing", "ly", "y", "ness"):
        if not word.endswith(ending):
            continue
        stem = word.removesuffix(ending)
        if len(stem) < 2:
            continue
        yield stem
        if ending in ("ing", "y"):
            yield stem + "e"
        if len(stem) > 2 and stem[-1] == stem[-2]:  # stopped -> stop
            yield stem[:-1]
        if stem.endswith("i"):  # carried -> carry, easily -> easy
            yield stem[:-1] + "y"
        if ending == "es" and stem.endswith("v"):  # wolves -> wolf
            yield stem[:-1] + "f"
            yield stem[:-1] + "fe"
