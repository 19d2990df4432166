"""What a source file becomes, and what is found in it: the values that travel through `prepare`.

    file -> Document (a tree of sections) -> Draft (one story) -> Story (cleaned, fingerprinted)

Whatever does not go on becomes a `Drop` with its reason, so that every text is accounted for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


class SourceError(Exception):
    """A file, or a part of one, that cannot be read; the message is one line for people."""


@dataclass(slots=True)
class Section:
    """A stretch of text under a heading, and the sections below it."""

    title: str = ""
    blocks: list[str] = field(default_factory=list)  # paragraphs ahead of the first child
    children: list[Section] = field(default_factory=list)
    roles: frozenset[str] = frozenset()  # epub:type and guide words: "preface", "part", ...
    author: str = ""  # a byline found while reading
    listed: bool = False  # the table of contents names it

    def walk(self) -> Iterator[Section]:
        """This section and all below it, in reading order."""
        yield self
        for child in self.children:
            yield from child.walk()

    def num_words(self) -> int:
        """Whitespace words of all text in it."""
        return sum(len(block.split()) for section in self.walk() for block in section.blocks)


@dataclass(slots=True)
class Document:
    """One book, page or record."""

    name: str  # path below the source folder, for people
    source: str  # what the split keeps together: the book's title or the file's name
    title: str = ""
    authors: tuple[str, ...] = ()  # of the whole; editors are not among them
    rights: str = ""
    folder: str = ""  # that it lies in, where nothing in it names the book that it belongs to
    missing: tuple[str, ...] = ()  # pages that the book lists and does not hold
    root: Section = field(default_factory=Section)


@dataclass(frozen=True, slots=True)
class Draft:
    """A story as it stands in its source."""

    title: str
    author: str
    source: str
    blocks: tuple[str, ...]
    where: str  # file, with a line or a heading
    prompt: str = ""  # given by the source
    reasoning: str = ""
    rights: str = ""
    folder: str = ""  # of a document that names no book


@dataclass(frozen=True, slots=True)
class Story:
    """A clean story."""

    uid: str  # 16 hexadecimal digits of sha256 over the normalised text
    title: str
    author: str
    source: str
    text: str
    words: int
    where: str
    prompt: str  # given by the source, or extracted
    prompt_from: str  # "source" or "extractive"
    reasoning: str = ""
    rights: str = ""
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Drop:
    """A text that does not become a record."""

    kind: str  # what is counted: "front matter", "too short", "duplicate", "unreadable", ...
    detail: str  # why, for people
    where: str
    title: str = ""
    words: int = 0
