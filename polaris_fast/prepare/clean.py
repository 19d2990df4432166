"""A story's paragraphs as a writer meant them: broken characters, page numbers and marks mended."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence

import ftfy
from ftfy.badness import is_bad

from .headings import title_key
from .sources.pieces import SCENE_BREAK

_INVISIBLE = re.compile(
    r"[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
    r"\ud800-\udfff]|(?<!\S)[\u200c\u200d]+(?!\S)"  # joiners inside words are Persian's and Hindi's
)
_SPACES = re.compile(r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
# One sign and repeats of it, or an ornament: set between scenes, never a sentence.
_BREAK = re.compile(
    r"\s*(?:[*#~=_\-\u2013\u2014\u2022\u00b7\u25cf\u25c6\u2042\u2766\u2767\u25a0.\\]\s*)+"
)
_PAGE = re.compile(
    r"(?:\[?\s*(?:page|pg\.?)\s*\d{1,4}\s*\]?|[-\u2013\u2014]\s*\d{1,4}\s*[-\u2013\u2014])", re.I
)
_INLINE_PAGE = re.compile(r"\s*(?:\[(?:Pg|Page)\.? ?\d{1,4}\]|\{\d{1,4}\})\s*", re.IGNORECASE)
_NOTE = re.compile(
    r"(?<=[\w.,;:!?\"'\u201d\u2019])\[(?:\d{1,3}|[a-z*\u2020\u2021])\]|[\u2020\u2021]"
)
_EMPHASIS = re.compile(r"(?<!\w)_(?=\S)([^_\n]+?)(?<=\S)_(?!\w)")
_ILLUSTRATION = re.compile(r"\[(?:illustration|image|decoration)[^\]]*\]", re.IGNORECASE)
_END = re.compile(r"[\W_]*(?:the end|end|finis|fin)[\W_]*", re.IGNORECASE)
_ENDS_SENTENCE = re.compile(r"[.!?:;\u2026\u2014\"'\u201d\u2019)\]*]\s*$")


def clean_blocks(blocks: Iterable[str], title: str = "") -> list[str]:
    """Clean paragraphs; `SCENE_BREAK` stands for any break between scenes.

    Args:
        title: of the story; a first paragraph that repeats it is left out.
    """
    mended = [text for block in blocks if (text := clean_text(block))]
    mended = _without_pages([SCENE_BREAK if _is_break(text) else text for text in mended])
    while mended and (mended[0] == SCENE_BREAK or _repeats(mended[0], title)):
        del mended[0]
    while mended and (mended[-1] == SCENE_BREAK or _END.fullmatch(mended[-1])):
        del mended[-1]
    return [
        text for i, text in enumerate(mended) if text != SCENE_BREAK or mended[i - 1] != SCENE_BREAK
    ]


def clean_text(text: str) -> str:
    """Composed characters (NFC), nothing invisible, plain spaces, no marks of notes or pages."""
    if not text.isascii():
        if is_bad(text):
            text = ftfy.fix_encoding(text)
        text = unicodedata.normalize("NFC", text)
    text = _INVISIBLE.sub("", text)
    text = _SPACES.sub(" ", text)
    if "[" in text or "{" in text or "\u2020" in text or "\u2021" in text:
        text = _ILLUSTRATION.sub("", _INLINE_PAGE.sub(" ", text))
        text = _NOTE.sub("", text)
    if "_" in text:
        text = _EMPHASIS.sub(r"\1", text)
    return "\n".join(line.strip() for line in text.strip().split("\n")).strip()


def _is_break(text: str) -> bool:
    return bool(_BREAK.fullmatch(text)) and not text.strip().strip(".").isdecimal()


def _is_number(text: str) -> bool:
    """Digits alone, of whatever script; "\u00b2" and "\u2460" are digits, too, and no numbers."""
    return text.isdecimal() and len(text) <= 4


def _repeats(text: str, title: str) -> bool:
    return bool(title) and title_key(text) == title_key(title) != ""


def _without_pages(blocks: Sequence[str]) -> list[str]:
    """Drop page numbers; a sentence that one of them cut in two is joined.

    A bare number is one when it cuts a sentence, or when the bare numbers rise from above 1: a
    story's own sections begin with 1, and their numbers are breaks between scenes.
    """
    numbers = [int(text) for text in blocks if _is_number(text)]
    rising = all(0 < b - a <= 3 for a, b in itertools.pairwise(numbers))
    paged = len(numbers) >= 3 and numbers[0] > 1 and rising
    kept: list[str] = []
    cut = False  # a page number stood between the last kept paragraph and this one
    for text in blocks:
        number = _is_number(text)
        last = kept[-1] if kept else SCENE_BREAK
        open_sentence = last != SCENE_BREAK and not _ENDS_SENTENCE.search(last)
        if _PAGE.fullmatch(text) or (number and (paged or open_sentence)):
            cut = True
            continue
        if cut and open_sentence and text[:1].islower():
            kept[-1] = f"{kept[-1]} {text}"
        else:
            kept.append(SCENE_BREAK if number else text)
        cut = False
    return kept
