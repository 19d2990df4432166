"""Who wrote a story: bylines in titles, in the contents, and under headings."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from .names import name_keys

MAX_NAME_WORDS = 6
_BY = re.compile(r"(?:(?:written|told|a (?:story|tale))\s+)?by[:\s]+(?P<name>\S.*)", re.I | re.S)
_PARTICLES = "van|von|der|den|de|du|da|di|la|le|del|della|bin|ibn|al|st\\.?|and|&|jr\\.?|sr\\.?"
_NAME_WORD = rf"(?:[^\W\d_]\.?|[^\W\d_a-z][\w'\u2019.\-]*|{_PARTICLES})"
_NAME = re.compile(rf"{_NAME_WORD}(?:,?\s+{_NAME_WORD}){{0,{MAX_NAME_WORDS - 1}}}")
_SPLITS = (
    re.compile(r"(?P<title>.+?)\s+[/|]\s+(?P<name>[^/|]+)", re.DOTALL),
    re.compile(r"(?P<title>.+?)[,;:]?\s+by\s+(?P<name>.+)", re.IGNORECASE | re.DOTALL),
    re.compile(r"(?P<title>.+?)\s+[\u2013\u2014-]{1,2}\s+(?P<name>.+)", re.DOTALL),
)


def looks_like_name(text: str) -> bool:
    """Two to six words, each capitalised, an initial or a particle of a name."""
    text = " ".join(text.split())
    return " " in text and not text.isupper() and bool(_NAME.fullmatch(text))


def byline_of(text: str) -> str:
    """The name in a paragraph that is nothing but "by NAME"; "" for any other."""
    found = _BY.fullmatch(" ".join(text.split()))
    if found is None:
        return ""
    name = found["name"].strip(" .,;")
    if name.isupper():
        name = name.title()
    return name if _NAME.fullmatch(name) and len(name.split()) <= MAX_NAME_WORDS else ""


def split_titles(titles: Sequence[str], known: Collection[str] = ()) -> list[tuple[str, str]]:
    """(title, author) of each heading of a list of stories; the author "" where none is named.

    "Title / Name", "Title by Name" and "Title - Name" are believed when at least half of the list
    is written so, or the name is among the `known` ones: a story may be called "Death by Drowning".
    """
    names = {key for name in known for key in name_keys(name)}
    chosen = [(title, "") for title in titles]
    for pattern in _SPLITS:
        found = [pattern.fullmatch(title.strip()) for title in titles]
        named = [m is not None and looks_like_name(m["name"]) for m in found]
        usual = len(titles) > 1 and sum(named) * 2 >= len(titles)
        for i, match in enumerate(found):
            if match is None or chosen[i][1]:
                continue
            if (named[i] and usual) or name_keys(match["name"]) & names:
                chosen[i] = (match["title"].strip(), match["name"].strip())
    return chosen
