"""HTML and XHTML elements to pieces, by lxml: what a reader would see, in order.

Left out: navigation, notes and their marks, page breaks, pictures, scripts. Nothing is fetched and
no entity of a document type is expanded.
"""

from __future__ import annotations

import html.entities
import re
from collections.abc import Iterator
from typing import Any

from lxml import etree

from ..document import SourceError
from .pieces import SCENE_BREAK, Kind, Piece
from .plain import decode, refuse_unknown

_SKIP = frozenset(
    "head script style nav svg math img template noscript iframe object form button select audio "
    "video canvas figure map input rt rp".split()
)
_BLOCK = frozenset(
    "p div section article main body blockquote li ul ol dl dt dd pre table tr td th header footer "
    "aside center address hgroup figcaption caption tbody thead html".split()
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_NOTES = frozenset(
    "pagebreak noteref footnote footnotes endnote endnotes rearnote rearnotes annoref".split()
)
_MARK = re.compile(r"[\s\[\](){}]*(?:\d{1,3}|[a-z]|[*\u2020\u2021\u00a7]+)[\s\[\](){}]*")
_LETTER = re.compile(r"\s*[a-z]\s*")  # a mark when it is a link, or in brackets
# Ahead of a power: a figure, a letter alone, or letters without a vowel (10, x, mc, km).
_POWERED = re.compile(r"(?:\d|(?<![^\W\d_])(?:[^\W\d_]|[b-df-hj-np-tv-xz]+))\Z", re.IGNORECASE)
_RAISED = str.maketrans(
    "0123456789", "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)
_TITLE_CLASS = re.compile(r"((chapter|story|section)[-_]?)?(title|heading|head)", re.IGNORECASE)
_AUTHOR_CLASS = re.compile(r"((chapter|story|section)[-_]?)?(author|byline)", re.IGNORECASE)
_MAX_HEADING_WORDS = 30
_NAMED = re.compile(r"&([A-Za-z][A-Za-z0-9]{1,31});")
_XML_NAMES = {"amp", "lt", "gt", "quot", "apos"}
_CHARSET = re.compile(
    rb"""\A\s*<\?xml\s[^>]*?\bencoding\s*=\s*["']\s*([\w.:-]+)"""
    rb"""|<meta\s[^>]*?\bcharset\s*=\s*["']?\s*([\w.:-]+)""",
    re.IGNORECASE,
)
_HEAD_BYTES = 4096  # where a page must say its encoding; browsers look at 1,024
_SPACE = re.compile(r"[ \t\r\n\f]+")


def parse_xml(raw: bytes, what: str) -> Any:
    """The root element of an XML file of a book's package.

    Raises:
        SourceError: not well-formed beyond repair.
    """
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, recover=True,
        encoding="utf-8",
    )  # fmt: skip
    try:
        root = etree.fromstring(_text(raw)[0].encode(), parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise SourceError(f"{what} is not XML ({error})") from error
    if root is None:
        raise SourceError(f"{what} is empty or not XML")
    return root


def parse_page(raw: bytes, what: str) -> Any:
    """The root element of an XHTML or HTML page.

    XHTML is parsed as XML, because `<title/>` would swallow an HTML page; what is not well-formed
    is parsed as HTML. Bytes become text here: libxml2 ends a page at the first that has no meaning.

    Raises:
        SourceError: nothing in it can be read, or its encoding is not known.
    """
    text, western = _text(raw)
    root = _parse_text(text, what)
    if western:
        refuse_unknown("".join(_all_text(root)))
    return root


def _parse_text(text: str, what: str) -> Any:
    strict = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, encoding="utf-8"
    )
    if text.lstrip()[:5] == "<?xml" or "http://www.w3.org/1999/xhtml" in text[:1000]:
        try:
            return etree.fromstring(_NAMED.sub(_numeric, text).encode(), strict)
        except (etree.XMLSyntaxError, ValueError):
            pass
    try:
        parser = etree.HTMLParser(encoding="utf-8", no_network=True)
        root = etree.fromstring(text.encode(), parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise SourceError(f"{what} is not HTML ({error})") from error
    if root is None:
        raise SourceError(f"{what} is empty")
    return root


def local_name(element: Any) -> str:
    """Tag without its namespace, lower case; "" for comments and entities."""
    tag = element.tag
    return tag.rpartition("}")[2].lower() if isinstance(tag, str) else ""


def attribute(element: Any, name: str) -> str:
    """The value of an attribute in whatever namespace, "" where there is none."""
    for key, value in element.attrib.items():
        if key.rpartition("}")[2].rpartition(":")[2].lower() == name:
            return str(value)
    return ""


def roles_of(element: Any) -> frozenset[str]:
    """Words of `epub:type`, and of `role` without its "doc-"."""
    if not element.attrib:
        return frozenset()
    typed = element.get("{http://www.idpf.org/2007/ops}type") or element.get("epub:type") or ""
    words = f"{typed} {element.get('role') or ''}".lower().split()
    return frozenset(word.removeprefix("doc-") for word in words)


def text_of(element: Any) -> str:
    """All text in an element on one line."""
    return " ".join("".join(element.itertext()).split())


class PieceMaker:
    """Walks one page; `anchors` gives the piece that follows each id."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.anchors: dict[str, int] = {}
        self._run: list[str] = []  # text of the paragraph that is being read

    def read(self, root: Any, roles: frozenset[str] = frozenset()) -> list[Piece]:
        """The pieces of a page whose file has these roles."""
        body = next((e for e in root.iter() if local_name(e) == "body"), root)
        self._walk(body, roles, pre=False)
        self._flush(roles)
        if self.pieces:
            self.pieces[0].starts_file = True
        return self.pieces

    def _walk(self, element: Any, roles: frozenset[str], *, pre: bool) -> None:
        tag = local_name(element)
        own = roles_of(element)
        if not tag or tag in _SKIP or own & _NOTES or _is_note_mark(element, tag):
            return
        if tag == "br":
            self._run.append("\n")
            return
        if tag == "hr":
            self._flush(roles)
            self._add(Kind.BLOCK, SCENE_BREAK, roles)
            return
        inner = roles | own if own else roles
        block = tag in _BLOCK or tag in _HEADINGS
        if block:
            self._flush(roles)
        self._anchor(element)
        if block and self._special(element, tag, inner):
            return
        pre = pre or tag == "pre"
        self._text(_raised(element), pre)
        for child in element:
            self._walk(child, inner, pre=pre)
            self._text(child.tail, pre)
        if block:
            self._flush(inner)

    def _special(self, element: Any, tag: str, roles: frozenset[str]) -> bool:
        """A heading or a byline, taken whole; its ids point at it."""
        level = _HEADINGS.get(tag, 0)
        style = element.get("class") or ""
        if not level and tag in ("p", "div") and style:
            words = style.split()
            if any(_AUTHOR_CLASS.fullmatch(word) for word in words):
                return self._whole(Kind.BYLINE, element, 0, roles)
            if any(_TITLE_CLASS.fullmatch(word) for word in words):
                level = 2
        return level > 0 and self._whole(Kind.HEADING, element, level, roles)

    def _whole(self, kind: Kind, element: Any, level: int, roles: frozenset[str]) -> bool:
        for inner in element.iter():
            if inner is not element:
                self._anchor(inner)
        text = " ".join(_visible(element).split())
        if not text or len(text.split()) > _MAX_HEADING_WORDS:
            return not text
        self._add(kind, text, roles, level)
        return True

    def _anchor(self, element: Any) -> None:
        for name in ("id", "name"):
            key = element.get(name)
            if key:
                # An anchor inside a paragraph points to that paragraph, which is not made yet.
                self.anchors.setdefault(key, len(self.pieces))

    def _text(self, text: str | None, pre: bool) -> None:
        if text:
            self._run.append(text if pre else _SPACE.sub(" ", text))

    def _flush(self, roles: frozenset[str]) -> None:
        if not self._run:
            return
        lines = "".join(self._run).split("\n")
        self._run.clear()
        text = "\n".join(line.strip() for line in lines).strip()
        if text:
            self._add(Kind.BLOCK, text, roles)

    def _add(self, kind: Kind, text: str, roles: frozenset[str], level: int = 0) -> None:
        self.pieces.append(Piece(kind, text, level, roles))


def _is_note_mark(element: Any, tag: str) -> bool:
    """Whether a `<sup>` is the mark of a note, and not the end of "XIXe", "Mr" or "mc2".

    A link that is a number, a letter or a sign is one; without a link a letter is text, and so is a
    number after a figure, a letter alone or letters without a vowel.
    """
    if tag != "sup":
        return False
    text = text_of(element)
    if not _MARK.fullmatch(text):
        return False
    if _is_link(element, text):
        return True
    power = text.isdecimal() and bool(_POWERED.search(_ahead_of(element)))
    return not power and not _LETTER.fullmatch(text)


def _is_link(element: Any, text: str) -> bool:
    """Whether a link or a reference to a note is in it, or around it and nothing else."""
    around = next((e for e in element.iterancestors() if local_name(e) == "a"), None)
    if around is not None and text_of(around) == text:
        return True
    return any(local_name(e) == "a" or roles_of(e) & _NOTES for e in element.iter())


def _ahead_of(element: Any) -> str:
    """Text right ahead of an element in its paragraph."""
    before, parent = element.getprevious(), element.getparent()
    if before is not None:
        return before.tail or (text_of(before) if local_name(before) not in ("", "br") else "")
    if parent is None:
        return ""
    inline = local_name(parent) not in _BLOCK and local_name(parent) not in _HEADINGS
    return parent.text or (_ahead_of(parent) if inline else "")


def _raised(element: Any) -> str:
    """A power in characters of its own: "10" and a raised "6" are not 106."""
    text = element.text or ""
    return text.translate(_RAISED) if local_name(element) == "sup" and text.isdecimal() else text


def _visible(element: Any) -> str:
    """Text of a heading without the marks of notes."""
    return "".join(_visible_parts(element))


def _visible_parts(element: Any) -> Iterator[str]:
    yield _raised(element)
    for child in element:
        tag = local_name(child)
        if tag == "br":
            yield " "
        elif tag and tag not in _SKIP and not roles_of(child) & _NOTES:
            if not _is_note_mark(child, tag):
                yield from _visible_parts(child)
        yield child.tail or ""


def _numeric(found: re.Match[str]) -> str:
    """`&nbsp;` as a number: without its document type XML does not know the name."""
    code = html.entities.name2codepoint.get(found[1])
    return found[0] if code is None or found[1] in _XML_NAMES else f"&#{code};"


def _text(raw: bytes) -> tuple[str, bool]:
    """(text of a page, whether it was read as windows-1252)."""
    found = _CHARSET.search(raw[:_HEAD_BYTES])
    declared = (found[1] or found[2]).decode("ascii") if found else ""
    text, western = decode(raw, declared)
    return text.replace("\0", ""), western  # libxml2 would end there


def _all_text(root: Any) -> Iterator[str]:
    """Text of a page without what is in scripts and styles."""
    for element in root.iter():
        if local_name(element) not in ("", "script", "style"):
            yield element.text or ""
        yield element.tail or ""
