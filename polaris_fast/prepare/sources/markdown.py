"""Markdown (CommonMark): rendered to HTML, then read like any page; front matter is understood."""

from __future__ import annotations

import re
from pathlib import Path

from markdown_it import MarkdownIt

from ..document import Document
from .folder import folder_of
from .html import document_of_page
from .plain import decode_text, read_limited

_FRONT = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*\n", re.DOTALL)
_FIELD = re.compile(r"^(title|author)[ \t]*:[ \t]*(.+)$", re.MULTILINE | re.IGNORECASE)


def read_markdown(path: Path, name: str) -> Document:
    """A Markdown file, with `title` and `author` of its front matter where it has one."""
    text = decode_text(read_limited(path)).replace("\r\n", "\n")
    fields: dict[str, str] = {}
    if found := _FRONT.match(text):
        fields = {k.lower(): v.strip().strip("'\"") for k, v in _FIELD.findall(found[1])}
        text = text[found.end() :]
    page = MarkdownIt("commonmark").render(text)
    raw = f'<meta charset="utf-8"><body>{page}</body>'.encode()
    document = document_of_page(raw, name)
    if fields.get("title"):
        document.title = document.source = fields["title"]
    if fields.get("author"):
        document.authors = (fields["author"],)
        document.folder = folder_of(name, fields.get("title", ""))
    return document
