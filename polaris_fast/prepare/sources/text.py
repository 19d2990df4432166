"""Plain text: paragraphs by blank lines, headings by a contents list or by how they are set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bylines import byline_of
from ..document import Document, SourceError
from ..headings import is_chapter, is_part, title_key
from .folder import folder_of
from .gutenberg import unframe
from .outline import build_outline
from .pieces import Entry, Kind, Piece
from .plain import decode_text, read_limited
from .wrapping import MIN_WIDTH, unwrap

MAX_HEADING_WORDS = 12
HEADING_GAP = 2  # blank lines ahead of a title that no contents list names
_CONTENTS = re.compile(r"\W*(?:table of )?contents\W*", re.IGNORECASE)
_PAGE = re.compile(r"(?:[ .\t]{2,}|\t)\s*(?:\d{1,4}|[ivxlc]{1,6})\s*$")
_QUOTES = "\"'\u201c\u201d\u2018\u2019"
_NO_TITLE_END = f".,;:!?{_QUOTES}"
_TITLE_LEVEL, _PART_LEVEL, _CHAPTER_LEVEL = 2, 1, 3


@dataclass(frozen=True, slots=True)
class _Paragraph:
    lines: list[str]
    gap: int  # blank lines ahead of it

    @property
    def line(self) -> str:
        """Its words on one line."""
        return " ".join(" ".join(self.lines).split())


def read_text(path: Path, name: str) -> Document:
    """A text file. Raises SourceError: binary data, or no text."""
    raw = decode_text(read_limited(path)).replace("\r\n", "\n").replace("\r", "\n")
    framed = unframe(raw)
    paragraphs = _paragraphs(framed.text)
    if not paragraphs:
        raise SourceError("the file has no text")
    listed, after = _contents(paragraphs)
    body = paragraphs[: after[0]] + paragraphs[after[1] :]
    entries, pieces = _to_pieces(body, listed)
    title = framed.title or Path(name).stem.replace("_", " ").replace("-", " ").strip()
    return Document(
        name=name,
        source=framed.title or Path(name).name,
        title=title,
        authors=(framed.author,) if framed.author else (),
        folder=folder_of(name, framed.title),
        root=build_outline(pieces, entries),
    )


def _paragraphs(text: str) -> list[_Paragraph]:
    found: list[_Paragraph] = []
    lines: list[str] = []
    gap = blank = 0
    for line in [*text.replace("\f", "\n\n\n").split("\n"), ""]:
        if line.strip():
            if not lines:
                gap = blank
            lines.append(line.rstrip())
            blank = 0
            continue
        if lines:
            found.append(_Paragraph(lines, gap if found else HEADING_GAP))
            lines = []
        blank += 1
    return found


def _contents(paragraphs: Sequence[_Paragraph]) -> tuple[list[str], tuple[int, int]]:
    """(titles that a contents list names, the paragraphs it takes up); nothing without one.

    The list ends where a paragraph repeats its first title, or is no short line any more.
    """
    nothing: tuple[list[str], tuple[int, int]] = ([], (0, 0))
    for start, paragraph in enumerate(paragraphs):
        if not _CONTENTS.fullmatch(paragraph.lines[0]):
            continue
        titles: list[str] = []
        end = start
        for end in range(start, len(paragraphs)):
            lines = paragraphs[end].lines[1:] if end == start else paragraphs[end].lines
            new = [_PAGE.sub("", line).strip() for line in lines]
            repeats = titles and new and title_key(new[0]) == title_key(titles[0])
            prose = any(len(line.split()) > MAX_HEADING_WORDS + 6 for line in new) or (
                sum(len(line) > MIN_WIDTH for line in new) > 1
            )
            if repeats or prose or (len(titles) > 1 and paragraphs[end].gap > 2 and len(new) == 1):
                break
            titles += [title for title in new if title]
        else:
            return nothing  # the whole file looks like a list: it is none
        return (titles, (start, end)) if len(titles) > 1 else nothing
    return nothing


def _to_pieces(
    paragraphs: Sequence[_Paragraph], listed: Sequence[str]
) -> tuple[list[Entry], list[Piece]]:
    wanted = {title_key(title): title for title in listed if title_key(title)}
    wrapped = [paragraph.lines for paragraph in paragraphs]
    texts = unwrap(wrapped)
    entries: list[Entry] = []
    pieces: list[Piece] = []
    for i, (paragraph, text) in enumerate(zip(paragraphs, texts, strict=True)):
        following = paragraphs[i + 1] if i + 1 < len(paragraphs) else None
        title = _listed_title(paragraph, wanted)
        if title is not None:
            depth = 0 if is_part(title) or not any(map(is_part, listed)) else 1
            entries.append(Entry(title, depth, len(pieces)))
            pieces.append(Piece(Kind.HEADING, paragraph.line, _TITLE_LEVEL))
        elif following is not None and (level := _heading_level(paragraph, bool(entries))):
            pieces.append(Piece(Kind.HEADING, paragraph.line, level))
        else:
            pieces.append(Piece(Kind.BLOCK, text))
    return entries, pieces


def _listed_title(paragraph: _Paragraph, wanted: dict[str, str]) -> str | None:
    """The contents' own form of a title that this paragraph is; each is found once."""
    if len(paragraph.lines) > 3 or not wanted:
        return None
    key = title_key(paragraph.line)
    for listed, title in wanted.items():
        named = listed.startswith(key) and title[len(paragraph.line) :].strip()
        if key and (key == listed or (named and len(key) > 3 and _is_author_part(title, key))):
            del wanted[listed]
            return title
    return None


def _is_author_part(title: str, key: str) -> bool:
    """Whether what the contents say beyond the title is "by NAME" or "/ NAME"."""
    for found in re.finditer(r"\s+(?:by|[/|\u2013\u2014-]+)\s+", title, re.IGNORECASE):
        if title_key(title[: found.start()]) == key:
            return True
    return False


def _heading_level(paragraph: _Paragraph, has_contents: bool) -> int:
    """Level of a heading that is recognised by how it is set; 0 for a paragraph."""
    line = paragraph.line
    if len(paragraph.lines) > 2 or len(line.split()) > MAX_HEADING_WORDS or byline_of(line):
        return 0
    letters = any(c.isalpha() for c in line)
    if is_part(line) and not line.endswith((",", ";", '"')):
        return _PART_LEVEL
    if not letters:  # a number: clean.py tells pages from sections
        return 0
    if is_chapter(line) and line[-1] not in ",;!?\"'":
        return _CHAPTER_LEVEL
    if has_contents or line[-1] in _NO_TITLE_END or line[0] in _QUOTES:
        return 0
    words = [w for w in re.findall(r"[^\W\d_]+", line) if len(w) > 3]
    capital = line.isupper() or (bool(words) and all(w[0].isupper() for w in words))
    return _TITLE_LEVEL if capital and paragraph.gap >= HEADING_GAP else 0
