"""EPUB 2 and 3: the spine's pages as one text, divided by the book's own table of contents."""

from __future__ import annotations

from pathlib import Path

from ..document import Document, SourceError
from .archive import Archive
from .epub_package import Package, read_package
from .markup import PieceMaker, parse_page
from .outline import build_outline
from .pieces import Entry, Piece

MIN_COVERED = 0.3  # of the text after the first line of the contents, for them to be any


def read_epub(path: Path, name: str) -> Document:
    """A book.

    Raises:
        SourceError: no EPUB, damaged, encrypted, or beyond the limits of `archive`.
    """
    with Archive(path) as archive:
        package = read_package(archive)
        pieces, starts, anchors = _read_spine(archive, package)
    if not pieces:
        raise SourceError("the book has no text")
    entries = [
        Entry(line.title, line.depth, anchors.get((line.file, line.fragment), starts[line.file]))
        for line in package.contents
        if line.file in starts and line.title
    ]
    if not _covers(entries, pieces):
        entries = []
    return Document(
        name=name,
        source=package.title or Path(name).stem,
        title=package.title,
        authors=tuple(package.authors),
        rights=package.rights,
        missing=tuple(package.missing),
        root=build_outline(pieces, entries),
    )


def _read_spine(
    archive: Archive, package: Package
) -> tuple[list[Piece], dict[str, int], dict[tuple[str, str], int]]:
    """(pieces, first piece of each page, piece of each (page, id))."""
    pieces: list[Piece] = []
    starts: dict[str, int] = {}
    anchors: dict[tuple[str, str], int] = {}
    for page in dict.fromkeys(package.spine):
        maker = PieceMaker()
        roles = package.roles.get(page, frozenset())
        found = maker.read(parse_page(archive.read(page), page), roles)
        starts[page] = len(pieces)
        anchors |= {(page, key): len(pieces) + at for key, at in maker.anchors.items()}
        pieces += found
    return pieces, starts, anchors


def _covers(entries: list[Entry], pieces: list[Piece]) -> bool:
    """Whether the contents divide the text, and are not just "Cover" and "Start"."""
    if len(entries) < 2:
        return False
    return min(e.at for e in entries) <= (1 - MIN_COVERED) * len(pieces)
