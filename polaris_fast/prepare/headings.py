"""What a heading says about the text below it: a chapter, a part of a book, or a title."""

from __future__ import annotations

import re
import unicodedata

_NUMBER_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty first second third fourth fifth "
    "sixth seventh eighth ninth tenth last"
).replace(" ", "|")
_COUNTED = rf"(?:\d{{1,3}}|(?:{_NUMBER_WORDS})(?:[- ](?:{_NUMBER_WORDS}))?)"
# Up to 399; "civil" is none.
_ROMAN = r"c{0,3}(?:xc|xl|l?x{0,3})(?:ix|iv|v?i{0,3})(?<=[ivxlc])(?![^\W_])"
_CAPITAL_ROMAN = r"C{0,3}(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})(?<=[IVXLC])(?![^\W_])"
_NUMERAL = rf"(?:{_COUNTED}|{_ROMAN})"  # after "Chapter" or "Part"
# Alone, "Liv" and "Xi" are names: in capitals, as "iv", or before a sign as "lv." they are numbers.
_BARE_NUMERAL = re.compile(
    rf"[\W_]*(?:{_COUNTED}|(?-i:{_CAPITAL_ROMAN}|(?=[ivx]+(?![^\W_])){_ROMAN}))[\W_]*"
    rf"|[\W_]*(?-i:{_ROMAN})\s*[.:)\]\u2013\u2014-][\W_]*",
    re.IGNORECASE,
)
_CHAPTER = re.compile(
    rf"\W*(?:chapter|chap\.|scene|canto)\s+(?:the\s+)?{_NUMERAL}\b.*", re.I | re.S
)
_INTERLUDE = re.compile(r"\W*(?:prologue|epilogue|interlude|coda|postscript)\W*", re.IGNORECASE)
_PART = re.compile(
    rf"\W*(?:part|book|volume|vol\.|section)\s+(?:the\s+)?{_NUMERAL}\b.*"
    rf"|\W*(?:the\s+)?(?:{_NUMBER_WORDS})\s+(?:part|book|volume)\b.*",
    re.IGNORECASE | re.DOTALL,
)
_LEADING = rf"\s*(?:\d{{1,3}}|{_CAPITAL_ROMAN})\s*[.:)\u2013\u2014-]\s+"
_NUMBERED = re.compile(rf"{_LEADING}\S.*", re.DOTALL)
_LEADING_NUMBER = re.compile(rf"^{_LEADING}(?=\S)")


def is_numeral(title: str) -> bool:
    """A bare number in digits, Roman numerals or words: "3", "IV.", "- Two -"."""
    return bool(_BARE_NUMERAL.fullmatch(title))


def is_chapter(title: str) -> bool:
    """A heading inside a story: none at all, a numeral, "Chapter Two: The Fog", "Epilogue"."""
    return not title.strip() or any(
        pattern.fullmatch(title) for pattern in (_BARE_NUMERAL, _CHAPTER, _INTERLUDE)
    )


def is_part(title: str) -> bool:
    """A heading that groups stories or chapters: "Part One", "Book II: The Sea"."""
    return bool(_PART.fullmatch(title))


def is_numbered(title: str) -> bool:
    """A number and a title: "IV. The Speckled Band"."""
    return bool(_NUMBERED.fullmatch(title)) and not is_chapter(title)


def without_number(title: str) -> str:
    """The title of a numbered heading."""
    return _LEADING_NUMBER.sub("", title, count=1) if is_numbered(title) else title


def title_key(title: str) -> str:
    """Letters and digits only, folded: equal for one title in two typographies."""
    folded = unicodedata.normalize("NFKD", title).casefold()
    return "".join(c for c in folded if c.isalnum())


def tidy_title(title: str) -> str:
    """One line; a title all in capitals gets ordinary ones."""
    text = " ".join(title.split()).strip()
    if text.isupper() and len(text) > 3:
        return _capitalise(text)
    return text


_SMALL = frozenset("a an and as at but by for from in into nor of on or the to with".split())


def _capitalise(text: str) -> str:
    words = text.lower().split()
    kept = [w if i and w in _SMALL else w[:1].upper() + w[1:] for i, w in enumerate(words)]
    return " ".join(kept)
