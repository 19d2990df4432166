"""A text as a reader sees it, for pattern matching: lower case, look-alikes made plain.

    plain = read_plain("10\\uff0f\\u200b10")    # a full-width slash, a zero-width space
    plain.text                                # "10/10"
    plain.source_span(0, 5)                   # (0, 6) in the original

Full-width and styled letters, accents, homoglyphs of Latin letters, typographic quotes and dashes
become their plain form; zero-width and other invisible characters vanish; tag characters, which
only models can read, become the letters they stand for. Positions map back to the original.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

_CYRILLIC = {  # small letters that look like Latin ones
    "\u0430": "a", "\u0432": "b", "\u0441": "c", "\u0501": "d", "\u0435": "e", "\u050d": "g",
    "\u04bb": "h", "\u043d": "h", "\u0456": "i", "\u0458": "j", "\u043a": "k", "\u04cf": "l",
    "\u043c": "m", "\u043e": "o", "\u0440": "p", "\u051b": "q", "\u0455": "s", "\u0442": "t",
    "\u0475": "v", "\u051d": "w", "\u0445": "x", "\u0443": "y", "\u04af": "y",
}  # fmt: skip
_GREEK = {  # the same
    "\u03b1": "a", "\u03b2": "b", "\u03f2": "c", "\u03b5": "e", "\u03b9": "i", "\u03f3": "j",
    "\u03ba": "k", "\u03b7": "n", "\u03bf": "o", "\u03c1": "p", "\u03c4": "t", "\u03c5": "u",
    "\u03bd": "v", "\u03c9": "w", "\u03c7": "x", "\u03b3": "y",
}  # fmt: skip
_SMALL_CAPITALS = {  # phonetic letters used as capitals
    "\u1d00": "a", "\u0299": "b", "\u1d04": "c", "\u1d05": "d", "\u1d07": "e", "\ua730": "f",
    "\u0262": "g", "\u029c": "h", "\u026a": "i", "\u1d0a": "j", "\u1d0b": "k", "\u029f": "l",
    "\u1d0d": "m", "\u0274": "n", "\u1d0f": "o", "\u1d18": "p", "\u0280": "r", "\ua731": "s",
    "\u1d1b": "t", "\u1d1c": "u", "\u1d20": "v", "\u1d21": "w", "\u028f": "y", "\u1d22": "z",
}  # fmt: skip
_LOOK_ALIKES = {
    **_CYRILLIC,
    **_GREEK,
    **_SMALL_CAPITALS,
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
    **dict.fromkeys("\u2223\u2502\u2503\u01c0\u23d0", "|"),
    **dict.fromkeys("\u2044\u2215\u29f8", "/"),
    **dict.fromkeys("\u25c1\u2039\u2329\u27e8\u3008\u02c2\u1438", "<"),
    **dict.fromkeys("\u25b7\u203a\u232a\u27e9\u3009\u02c3\u1433", ">"),
    "\u2581": "_",
    "\u0131": "i",  # dotless
    "\u0251": "a",
    "\u0261": "g",
    "\u2028": "\n",
    "\u2029": "\n",
}
_TAGS = range(0xE0020, 0xE007F)  # invisible twins of ASCII
_INVISIBLE = {"Cf", "Cc", "Mn", "Me", "Cs"}


@dataclass(frozen=True, slots=True)
class PlainText:
    """The folded text and where each of its characters came from."""

    text: str
    origins: Sequence[int]  # index in the original of each character of `text`

    def source_span(self, start: int, end: int) -> tuple[int, int]:
        """The stretch of the original that `text[start:end]`, not empty, stands for."""
        return self.origins[start], self.origins[end - 1] + 1


def read_plain(original: str) -> PlainText:
    """Fold `original`; linear in its length."""
    folded = {char: _fold(char) for char in set(original)}
    if all(len(plain) == 1 for plain in folded.values()):
        table = {ord(char): plain for char, plain in folded.items()}
        return PlainText(original.translate(table), range(len(original)))
    pieces = [folded[char] for char in original]
    origins = [index for index, piece in enumerate(pieces) for _ in piece]
    return PlainText("".join(pieces), origins)


@lru_cache(maxsize=65536)
def _fold(char: str) -> str:
    """What a character is read as; "" when nothing of it is seen."""
    if char in "\n\t\r":
        return "\n" if char == "\n" else " "
    if ord(char) in _TAGS:
        char = chr(ord(char) - 0xE0000)
    if char in _LOOK_ALIKES:
        return _LOOK_ALIKES[char]
    seen = [c for c in unicodedata.normalize("NFKD", char) if _visible(c)]
    return "".join(_LOOK_ALIKES.get(low, low) for c in seen for low in c.lower() if _visible(low))


def _visible(char: str) -> bool:
    return unicodedata.category(char) not in _INVISIBLE
