"""HTML pages: headings divide the text; a list of links to its headings is its contents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..document import Document, SourceError
from ..headings import title_key
from .folder import folder_of
from .markup import PieceMaker, local_name, parse_page, text_of
from .outline import build_outline
from .pieces import Entry, Kind, Piece

MAX_BYTES = 256 * 2**20
MIN_LINKS = 3


def read_html(path: Path, name: str) -> Document:
    """A page. Raises SourceError: no text, or larger than `MAX_BYTES`."""
    if path.stat().st_size > MAX_BYTES:
        raise SourceError(f"larger than {MAX_BYTES // 2**20} MiB")
    return document_of_page(path.read_bytes(), name)


def document_of_page(raw: bytes, name: str) -> Document:
    """The document of an HTML text; Markdown comes this way, too."""
    root = parse_page(raw, name)
    maker = PieceMaker()
    pieces = maker.read(root)
    if not pieces:
        raise SourceError("the page has no text")
    title = next((text_of(e) for e in root.iter() if local_name(e) == "title"), "")
    author = next(
        (e.get("content", "") for e in root.iter()
         if local_name(e) == "meta" and (e.get("name") or "").lower() == "author"), ""
    )  # fmt: skip
    entries = _linked_headings(root, pieces, maker.anchors)
    return Document(
        name=name,
        source=title or Path(name).stem,
        title=title,
        authors=(author.strip(),) if author.strip() else (),
        folder=folder_of(name, title if author.strip() else ""),
        root=build_outline(pieces, entries),
    )


def _linked_headings(root: Any, pieces: list[Piece], anchors: dict[str, int]) -> list[Entry]:
    """Links whose text is the heading that they lead to: the page's own table of contents."""
    entries: dict[int, Entry] = {}
    for link in (e for e in root.iter() if local_name(e) == "a"):
        href, text = link.get("href") or "", text_of(link)
        at = anchors.get(href[1:], len(pieces)) if href.startswith("#") else len(pieces)
        heading = next((p for p in pieces[at : at + 2] if p.kind is Kind.HEADING), None)
        if heading is None or not text or not title_key(heading.text):
            continue
        if title_key(text).startswith(title_key(heading.text)):
            index = at if pieces[at] is heading else at + 1
            entries.setdefault(index, Entry(text, heading.level, index))
    if len(entries) < MIN_LINKS:
        return []
    levels = sorted({entry.depth for entry in entries.values()})
    return [Entry(e.title, levels.index(e.depth), e.at) for e in entries.values()]
