"""The flat form of a text, common to all formats: paragraphs, headings and breaks in order."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

SCENE_BREAK = "* * *"


class Kind(Enum):
    """What a piece is."""

    BLOCK = "block"
    HEADING = "heading"
    BYLINE = "byline"


@dataclass(slots=True)
class Piece:
    """One paragraph, heading or byline."""

    kind: Kind
    text: str
    level: int = 0  # of a heading, 1 to 6
    roles: frozenset[str] = frozenset()
    starts_file: bool = False  # the first piece of a file of a book


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a table of contents, at the piece that it points to."""

    title: str
    depth: int  # 0 is outermost
    at: int  # index into the pieces
