"""The names of authors: equal for one person in two spellings, and each of several apart."""

from __future__ import annotations

import re

from .headings import title_key

_NOBODY = {"anonymous", "anon", "various", "variousauthors", "unknown", "unknownauthor", "multiple",
           "others"}  # fmt: skip
_AND = re.compile(r"\s*(?:&|;|,?\s+and\s)\s*", re.IGNORECASE)
_YEAR = r"(?:(?:(?:ca?|b|d|fl)\.|born|died)\s*)?\d{3,4}\??(?:\s*b\.?c\.?(?:e\.?)?)?"
_TO = rf"\s*[-\u2013\u2014]\s*(?:{_YEAR})?"
_DATES = re.compile(
    rf"(?:,\s*{_YEAR}(?:{_TO})?|\s+{_YEAR}{_TO})\.?\s*$"  # ", 1947-", ", b. 1947", " 1866-1946"
    r"|\([^()]*\)",  # "(1947-)", "(Herbert George)"
    re.IGNORECASE,
)
_SUFFIX = re.compile(r"[\s,]+(?:jr|sr|esq|ii|iii|iv|et\s+al)\b\.?", re.IGNORECASE)


def name_key(name: str) -> str:
    """Equal for one author in two spellings: "Wells, H. G., 1866-1946" and "H.G. Wells".

    "" for nobody.
    """
    last, comma, first = _bare(name).partition(",")
    return _key(f"{first} {last}" if comma else last)


def name_keys(names: str) -> frozenset[str]:
    """The key of each author: "King, Stephen & Straub, Peter" has two; none for nobody.

    A single comma between full names may part two people or be a catalogue's "Last, First": both
    readings are given, because a tie too many costs less than a leak.
    """
    keys = set()
    for person in _AND.split(_bare(names)):
        parts = [part for part in map(str.strip, _bare(person).split(",")) if part]
        full = len(parts) > 1 and all(map(_is_full, parts))
        if full:
            keys |= {_key(part) for part in parts}
        if len(parts) < 3 or not full:
            pairs = zip(parts[::2], parts[1::2], strict=False)
            listed = len(parts) > 2 and len(parts) % 2 == 0  # "King, Stephen, Straub, Peter"
            keys |= {_key(f"{b} {a}") for a, b in pairs} if listed else {name_key(person)}
    return frozenset(keys - {""})


def _bare(names: str) -> str:
    """Without dates of life, what stands in parentheses, and "Jr."."""
    return _SUFFIX.sub("", _DATES.sub("", names)).strip(" ,")


def _is_full(part: str) -> bool:
    """Two words or more, the last one no initial: "Ursula K." follows "Le Guin"."""
    words = part.replace(".", " ").split()
    return len(words) > 1 and len(words[-1]) > 1


def _key(name: str) -> str:
    key = title_key(name)
    return "" if key in _NOBODY else key
