"""Books made for the tests: EPUBs with any parts, and stories of any length."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from polaris_fast.data import load_samples

WORDS = (
    "lamp river stone bread winter ladder copper orchard whistle candle harbor ribbon kettle "
    "meadow barrel lantern saddle window thimble garden bridge pocket button anchor feather "
    "mirror basket chimney pepper marble wagon needle cradle walked carried found lost turned "
    "opened kept heard watched mended slowly again before under behind toward every quiet bright "
    "narrow heavy empty broken silver early cold warm"
).split()


def prose(seed: int, words: int = 300) -> str:
    """Paragraphs of nonsense in sentences; two seeds share no word 5-gram to speak of."""
    rng = random.Random(seed)
    paragraphs = []
    while sum(len(p.split()) for p in paragraphs) < words:
        sentences = []
        for _ in range(rng.randint(3, 6)):
            sentence = " ".join(rng.choices(WORDS, k=rng.randint(7, 14)))
            sentences.append(sentence.capitalize() + ".")
        paragraphs.append(" ".join(sentences))
    return "\n\n".join(paragraphs)


def sample_texts(num: int) -> list[str]:
    """Texts of the longer bundled stories, the shortest of them first."""
    ordered = sorted(load_samples("stories"), key=lambda record: record.target_word_count)
    return [str(record.story) for record in ordered[:num]]


@dataclass(frozen=True)
class Part:
    """One page of a book."""

    title: str  # in the contents; "" leaves it out of them
    text: str
    heading: str | None = None  # over the text; None: the title
    byline: str = ""
    roles: str = ""  # epub:type of its section
    depth: int = 0


def page(part: Part) -> str:
    """XHTML as books have it."""
    heading = part.title if part.heading is None else part.heading
    head = f"<h1>{escape(heading)}</h1>" if heading else ""
    byline = f'<p class="byline">{escape(part.byline)}</p>' if part.byline else ""
    blocks = "".join(
        p if p.startswith("<") else f"<p>{escape(p)}</p>" for p in part.text.split("\n\n")
    )
    role = f' epub:type="{part.roles}"' if part.roles else ""
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE html>\n'
        '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops">'
        f"<head><title/></head><body><section{role}>{head}{byline}{blocks}</section></body></html>"
    )


def write_epub(
    path: Path,
    parts: Sequence[Part],
    *,
    title: str = "A Shelf of Stories",
    creators: Sequence[tuple[str, str]] = (),
    ncx: bool = False,
    extra: Sequence[tuple[str, str]] = (),
) -> Path:
    """An EPUB with one page a part.

    Args:
        creators: (name, MARC role) of the OPF.
        ncx: EPUB 2's contents instead of a nav page.
        extra: further members, (name, text).
    """
    listed = [(i, part) for i, part in enumerate(parts) if part.title]
    items = [f'<item id="p{i}" href="p{i}.xhtml" media-type="application/xhtml+xml"/>'
             for i in range(len(parts))]  # fmt: skip
    spine = [f'<itemref idref="p{i}"/>' for i in range(len(parts))]
    if ncx:
        items.append('<item id="toc" href="toc.ncx" media-type="application/x-dtbncx+xml"/>')
    else:
        items.append('<item id="toc" href="nav.xhtml" properties="nav" '
                     'media-type="application/xhtml+xml"/>')  # fmt: skip
    people = "".join(
        f'<dc:creator opf:role="{role}">{escape(name)}</dc:creator>' for name, role in creators
    )
    opf = (
        '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" '
        'xmlns:opf="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<metadata><dc:title>{escape(title)}</dc:title>{people}"
        "<dc:rights>All rights with the authors</dc:rights></metadata>"
        f"<manifest>{''.join(items)}</manifest><spine>{''.join(spine)}</spine></package>"
    )
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("mimetype", "application/epub+zip")
        book.writestr("META-INF/container.xml", container)
        book.writestr("OEBPS/book.opf", opf)
        book.writestr("OEBPS/toc.ncx" if ncx else "OEBPS/nav.xhtml",
                      _ncx(listed) if ncx else _nav(listed))  # fmt: skip
        for i, part in enumerate(parts):
            book.writestr(f"OEBPS/p{i}.xhtml", page(part))
        for name, text in extra:
            book.writestr(name, text)
    return path


def _nav(listed: Sequence[tuple[int, Part]]) -> str:
    return (
        '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops">'
        f'<body><nav epub:type="toc">{_nested(listed, "ol", _line)}</nav></body></html>'
    )


def _line(index: int, part: Part, below: str) -> str:
    return f'<li><a href="p{index}.xhtml">{escape(part.title)}</a>{below}</li>'


def _ncx(listed: Sequence[tuple[int, Part]]) -> str:
    def point(index: int, part: Part, below: str) -> str:
        label = f"<navLabel><text>{escape(part.title)}</text></navLabel>"
        return f'<navPoint>{label}<content src="p{index}.xhtml"/>{below}</navPoint>'

    points = _nested(listed, "", point)
    return f'<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>{points}</navMap></ncx>'


def _nested(listed, wrapper, line, depth=0) -> str:
    out, i = "", 0
    while i < len(listed):
        index, part = listed[i]
        end = i + 1
        while end < len(listed) and listed[end][1].depth > depth:
            end += 1
        below = _nested(listed[i + 1 : end], wrapper, line, depth + 1) if end > i + 1 else ""
        out += line(index, part, below)
        i = end
    return f"<{wrapper}>{out}</{wrapper}>" if wrapper else out
