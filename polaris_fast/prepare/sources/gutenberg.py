"""The frame that Project Gutenberg puts around a text: title and author from it, then off with it.

It is licence text, and would otherwise be trained on as the beginning and the end of a story.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_START = re.compile(r"^\*{3}\s*START OF (?:THE|THIS) PROJECT GUTENBERG.*?\*{3}\s*$", re.I | re.M)
_END = re.compile(
    r"^(?:\*{3}\s*END OF (?:THE|THIS) PROJECT GUTENBERG|End of (?:the )?Project Gutenberg)",
    re.M | re.I,
)
_FIELD = re.compile(r"^(Title|Author):[ \t]*(.+(?:\n[ \t]{2,}\S.*)*)", re.MULTILINE)
_PRODUCED = re.compile(
    r"\A\s*(?:Produced|E-?text prepared|Transcribed) by.*?\n\s*\n", re.DOTALL | re.I
)


@dataclass(frozen=True, slots=True)
class Framed:
    """A text without its frame."""

    text: str
    title: str = ""
    author: str = ""


def unframe(text: str) -> Framed:
    """The text between the markers; a text without them is given back as it is."""
    start = _START.search(text)
    if start is None:
        return Framed(text)
    fields = {
        key: ("; " if key == "Author" else " ").join(" ".join(s.split()) for s in value.split("\n"))
        for key, value in _FIELD.findall(text[: start.start()])
    }  # of several authors each has a line
    end = _END.search(text, start.end())
    body = text[start.end() : end.start() if end else len(text)]
    return Framed(_PRODUCED.sub("", body), fields.get("Title", ""), fields.get("Author", ""))
