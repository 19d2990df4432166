"""An EPUB's package: what is in the book, in which order, by whom, and its table of contents.

EPUB 2 and 3 (https://www.w3.org/TR/epub-33/): container.xml names the OPF file; its spine is the
reading order; the contents are a `nav` page (EPUB 3) or an NCX file (EPUB 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..document import SourceError
from .archive import Archive
from .markup import attribute, local_name, parse_page, parse_xml, roles_of, text_of

_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml", "text/x-oeb1-document")
_FONT_ENCRYPTION = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_NOT_AUTHORS = {"edt", "trl", "ill", "pbl", "bkp", "cov", "com", "aui", "win"}  # MARC relators


@dataclass(frozen=True, slots=True)
class ContentsLine:
    """One line of the table of contents."""

    title: str
    depth: int
    file: str
    fragment: str


@dataclass(slots=True)
class Package:
    """What the OPF file says."""

    title: str = ""
    authors: list[str] = field(default_factory=list)
    rights: str = ""
    spine: list[str] = field(default_factory=list)  # members, in reading order
    missing: list[str] = field(default_factory=list)  # pages of the spine that are not there
    roles: dict[str, frozenset[str]] = field(default_factory=dict)  # of members: guide, landmarks
    contents: list[ContentsLine] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Item:
    name: str
    media_type: str
    properties: str


def read_package(archive: Archive) -> Package:
    """The package of a book.

    Raises:
        SourceError: there is none, it is encrypted, or it has no pages.
    """
    _refuse_encrypted(archive)
    opf = _opf_name(archive)
    root = parse_xml(archive.read(opf), opf)
    items = {
        e.get("id", ""): _Item(archive.resolve(opf, e.get("href", ""))[0],
                               e.get("media-type", ""), e.get("properties", ""))
        for e in root.iter()
        if local_name(e) == "item"
    }  # fmt: skip
    package = Package()
    _metadata(root, package)
    for ref in (e for e in root.iter() if local_name(e) == "itemref"):
        item = items.get(ref.get("idref", ""))
        if item is None or item.media_type not in _PAGES:
            continue
        if item.name in archive:
            package.spine.append(item.name)
        else:
            package.missing.append(item.name or ref.get("idref", ""))
    if not package.spine:
        raise SourceError(f"{opf} lists no page that is there")
    for ref in (e for e in root.iter() if local_name(e) == "reference"):
        _add_role(package, archive.resolve(opf, ref.get("href", ""))[0], ref.get("type", ""))
    _contents(archive, items, package)
    return package


def _opf_name(archive: Archive) -> str:
    container = parse_xml(archive.read("META-INF/container.xml"), "META-INF/container.xml")
    for element in container.iter():
        if local_name(element) == "rootfile" and element.get("full-path"):
            return archive.resolve("", element.get("full-path"))[0]
    raise SourceError("META-INF/container.xml names no package")


def _refuse_encrypted(archive: Archive) -> None:
    name = "META-INF/encryption.xml"
    if name not in archive:
        return
    for element in parse_xml(archive.read(name), name).iter():
        if local_name(element) == "encryptionmethod" and not element.get(
            "Algorithm", ""
        ).startswith(_FONT_ENCRYPTION):
            raise SourceError("the book is encrypted (DRM); give a copy without it")


def _metadata(root: Any, package: Package) -> None:
    relators = {  # EPUB 3 says an author's role in a <meta> beside the name
        e.get("refines", "").lstrip("#"): (e.text or "").strip()
        for e in root.iter()
        if local_name(e) == "meta" and e.get("property") == "role"
    }
    for element in root.iter():
        tag, text = local_name(element), text_of(element) if local_name(element) else ""
        if tag == "title" and text and not package.title:
            package.title = text
        elif tag == "rights" and text:
            package.rights = text
        elif tag == "creator" and text:
            role = attribute(element, "role") or relators.get(element.get("id", ""), "")
            if role not in _NOT_AUTHORS:
                package.authors.append(text)


def _contents(archive: Archive, items: dict[str, _Item], package: Package) -> None:
    """Fill in `contents` from the first of nav page and NCX file that has any."""
    for item in items.values():
        if "nav" in item.properties.split() and item.name in archive:
            page = parse_page(archive.read(item.name), item.name)
            package.roles.setdefault(item.name, frozenset({"toc"}))
            package.contents = list(_nav_lines(archive, page, item.name, package))
    if package.contents:
        return
    for item in items.values():
        if item.media_type == "application/x-dtbncx+xml" and item.name in archive:
            root = parse_xml(archive.read(item.name), item.name)
            top = next((e for e in root.iter() if local_name(e) == "navmap"), root)
            package.contents = list(_ncx_lines(archive, top, item.name, 0))
            return


def _nav_lines(archive: Archive, page: Any, name: str, package: Package) -> Iterator[ContentsLine]:
    for nav in (e for e in page.iter() if local_name(e) == "nav"):
        kinds = roles_of(nav)
        lists = [e for e in nav if local_name(e) in ("ol", "ul")]
        if "landmarks" in kinds:
            for link in (e for e in nav.iter() if local_name(e) == "a"):
                for role in roles_of(link):
                    _add_role(package, archive.resolve(name, link.get("href", ""))[0], role)
        elif ("toc" in kinds or not kinds) and lists:
            yield from _list_lines(archive, lists[0], name, 0)


def _list_lines(archive: Archive, top: Any, name: str, depth: int) -> Iterator[ContentsLine]:
    for item in (e for e in top if local_name(e) == "li"):
        link = next((e for e in item if local_name(e) in ("a", "span")), None)
        inner = [e for e in item if local_name(e) in ("ol", "ul")]
        if link is not None:
            href = link.get("href") or _first_href(item)
            file, fragment = archive.resolve(name, href)
            yield ContentsLine(text_of(link), depth, file, fragment)
        for below in inner:
            yield from _list_lines(archive, below, name, depth + 1)


def _first_href(item: Any) -> str:
    """A heading without a link of its own stands where its first line points."""
    return next((str(e.get("href")) for e in item.iter() if e.get("href")), "")


def _ncx_lines(archive: Archive, top: Any, name: str, depth: int) -> Iterator[ContentsLine]:
    for point in (e for e in top if local_name(e) == "navpoint"):
        label = next((e for e in point if local_name(e) == "navlabel"), None)
        content = next((e for e in point if local_name(e) == "content"), None)
        if label is not None and content is not None:
            file, fragment = archive.resolve(name, content.get("src", ""))
            yield ContentsLine(text_of(label), depth, file, fragment)
        yield from _ncx_lines(archive, point, name, depth + 1)


def _add_role(package: Package, name: str, role: str) -> None:
    if name and role:
        had = package.roles.get(name, frozenset())
        package.roles[name] = had | {role.lower().removeprefix("other.")}
