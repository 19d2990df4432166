"""Pieces to a tree of sections: by the table of contents, and by heading levels inside it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..bylines import byline_of
from ..document import Section
from ..headings import title_key, without_number
from ..matter import ROLES, matter_of
from .pieces import Entry, Kind, Piece

MAX_TITLE_PIECES = 4  # a title may be set in several headings


def build_outline(pieces: Sequence[Piece], entries: Sequence[Entry] = ()) -> Section:
    """The tree of a text; its root has no title.

    Args:
        entries: the table of contents. Text ahead of the first entry, and files marked as front
            or back matter that no entry names, become unlisted sections of the root.
    """
    root = Section()
    ordered = sorted(entries, key=lambda entry: entry.at)
    _hang_headings(root, pieces[: ordered[0].at] if ordered else pieces)
    open_sections = [root]
    for i, entry in enumerate(ordered):
        end = ordered[i + 1].at if i + 1 < len(ordered) else len(pieces)
        section = Section(title=entry.title, listed=True)
        del open_sections[min(entry.depth + 1, len(open_sections)) :]
        open_sections[-1].children.append(section)
        open_sections.append(section)
        own, matter = _cut_matter(pieces[entry.at : end])
        if own:
            section.roles = own[0].roles
        _hang_headings(section, _without_title(own, section))
        root.children += matter
    return root


def _hang_headings(top: Section, pieces: Sequence[Piece]) -> None:
    """Put pieces below `top`, nested by the levels of their headings."""
    path: list[tuple[int, Section]] = [(0, top)]
    for piece in pieces:
        here = path[-1][1]
        if piece.kind is Kind.HEADING:
            while path[-1][0] >= piece.level:
                path.pop()
            section = Section(title=piece.text, roles=piece.roles)
            path[-1][1].children.append(section)
            path.append((piece.level, section))
        elif piece.starts_file and piece.roles & ROLES and not here.roles & ROLES:
            section = Section(blocks=[piece.text], roles=piece.roles)
            top.children.append(section)
            path = [(0, top), (6, section)]
        elif piece.kind is Kind.BYLINE or (not here.blocks and byline_of(piece.text)):
            here.author = here.author or byline_of(piece.text) or piece.text
        else:
            here.blocks.append(piece.text)


def _cut_matter(pieces: Sequence[Piece]) -> tuple[list[Piece], list[Section]]:
    """(own pieces, later files without a line in the contents that are front or back matter)."""
    own: list[Piece] = []
    matter: list[Section] = []
    starts = [i for i, piece in enumerate(pieces) if i == 0 or piece.starts_file]
    for start, end in pairwise([*starts, len(pieces)]):
        file = pieces[start:end]
        section = Section(
            title=file[0].text if file[0].kind is Kind.HEADING else "",
            blocks=[piece.text for piece in file if piece.kind is Kind.BLOCK],
            roles=file[0].roles,
        )
        if start and matter_of(section):
            matter.append(section)
        else:
            own += file
    return own, matter


def _without_title(pieces: Sequence[Piece], section: Section) -> Sequence[Piece]:
    """Pieces after the headings that repeat the section's title; a byline among them is taken."""
    wanted = {title_key(section.title), title_key(without_number(section.title))}
    joined = ""
    for i, piece in enumerate(pieces[:MAX_TITLE_PIECES]):
        if piece.kind is Kind.BYLINE or byline_of(piece.text):
            section.author = section.author or byline_of(piece.text) or piece.text
            continue
        joined += title_key(piece.text)
        if joined in wanted or title_key(without_number(piece.text)) in wanted:
            return pieces[i + 1 :]
        if not any(key.startswith(joined) for key in wanted):
            # "The Fog by Ann Lee" in the contents, "The Fog" over the text: stories.py tells
            first = pieces[0]
            begins = first.kind is Kind.HEADING and any(
                key.startswith(title_key(first.text)) for key in wanted
            )
            return pieces[1:] if begins else pieces
    return pieces
