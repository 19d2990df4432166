"""The stories in a document: which sections are one story, and which only hold stories.

    no sections below                                    a story
    all below are chapters (numerals, "Chapter Two")     a story with chapters
    a line of the contents, its headings unlisted        a story with titled sections
    "Part One", or titled sections below                 a container: look inside

Numerals that follow a title in a flat list belong to it. Front and back matter goes, see `matter`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .bylines import split_titles
from .document import Document, Draft, Drop, Section
from .headings import (
    is_chapter,
    is_numbered,
    is_numeral,
    is_part,
    tidy_title,
    without_number,
)  # fmt: skip
from .matter import matter_of
from .names import name_keys
from .sources.pieces import SCENE_BREAK

MIN_TOLD_WORDS = 30  # less text between stories is not worth a line in the report
OPENING_WORDS = 150  # a section with more text ahead of its subheadings has begun to tell
NUMBERED_STORY_WORDS = 2000  # numbered sections of a book that are this long are its stories


@dataclass(slots=True)
class Found:
    """What a document came to."""

    drafts: list[Draft] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)


def find_stories(document: Document, *, max_words: int, whole: bool = False) -> Found:
    """All stories of a document, in reading order.

    Args:
        max_words: a line of the contents with more words than this and titled sections is taken
            for a container.
        whole: the document is one story, whatever its headings say; nothing in it is left out.
    """
    return _Finder(document, max_words).run(whole)


class _Finder:
    def __init__(self, document: Document, max_words: int) -> None:
        self._document, self._max_words = document, max_words
        self._found = Found()
        for page in document.missing:
            why = f"the page {page} is listed and not there"
            self._found.drops.append(Drop("unreadable", why, document.name))
        self._author = "; ".join(filter(name_keys, document.authors))

    def run(self, whole: bool) -> Found:
        root = self._document.root
        if not whole:
            self._drop_matter(root)
        top = _unwrap(root)
        one = self._all_chapters(top) and not _is_shelf(root, top)
        if whole or one or _mostly_own(top):
            self._emit(root if whole else top, top.title or self._document.title, top.author)
        else:
            self._open(top)
        return self._found

    def _drop_matter(self, section: Section) -> None:
        """Take front and back matter out of the tree, wherever it hangs."""
        kept = []
        for child in section.children:
            known = matter_of(child)
            if known is None:
                self._drop_matter(child)
                kept.append(child)
                continue
            kind, why = known
            self._drop(child, kind, why)
        section.children = kept

    def _open(self, section: Section) -> None:
        """Look for stories in a container."""
        if _own_words(section) >= MIN_TOLD_WORDS:
            self._drop(Section(section.title, section.blocks), "between stories",
                       "text ahead of the first story")  # fmt: skip
        children = [_unwrap(child) for child in _nest_numerals(section.children)]
        titles = split_titles([child.title for child in children], self._document.authors)
        for child, (title, author) in zip(children, titles, strict=True):
            if self._is_story(child):
                self._emit(child, without_number(title or child.title), child.author or author)
            else:
                self._open(child)

    def _is_story(self, section: Section) -> bool:
        kids = section.children
        if not kids:
            return True
        if any(kid.author for kid in kids):
            return False
        if self._all_chapters(section):
            return not (is_part(section.title) and any(is_numbered(k.title) for k in kids))
        if is_part(section.title) or "part" in section.roles or "volume" in section.roles:
            return False
        if section.listed and not any(kid.listed for kid in kids):
            return section.num_words() <= self._max_words
        return _own_words(section) >= OPENING_WORDS

    def _all_chapters(self, section: Section) -> bool:
        """Whether everything below is a chapter, or a part made of chapters."""
        titled = bool(section.title) and not is_part(section.title)
        return all(
            is_chapter(kid.title)
            or (titled and is_numbered(kid.title))
            or (is_part(kid.title) and self._all_chapters(kid))
            for kid in section.children
        )

    def _emit(self, section: Section, title: str, author: str) -> None:
        blocks = tuple(_text(section))
        if not any(block.strip() for block in blocks):
            return
        document = self._document
        self._found.drafts.append(
            Draft(
                title=tidy_title(title),
                author=tidy_title(author) or self._author,
                source=document.source,
                folder=document.folder,
                blocks=blocks,
                where=document.name,
                rights=document.rights,
            )
        )

    def _drop(self, section: Section, kind: str, why: str) -> None:
        words = section.num_words()
        drop = Drop(kind, why, self._document.name, tidy_title(section.title), words)
        self._found.drops.append(drop)


def _unwrap(section: Section) -> Section:
    """A section that only holds one other is that other, under its own title if that has none."""
    while not section.blocks and len(section.children) == 1:
        child = section.children[0]
        if is_chapter(child.title) and section.title:
            child.title = section.title
        child.author = child.author or section.author
        child.listed = child.listed or section.listed
        section = child
    return section


def _own_words(section: Section) -> int:
    """Words ahead of the first section below."""
    return sum(len(block.split()) for block in section.blocks)


def _mostly_own(section: Section) -> bool:
    """Whether a text has a stray heading or two, rather than an introduction and stories."""
    return _own_words(section) >= max(OPENING_WORDS, section.num_words() // 2)


def _is_shelf(root: Section, top: Section) -> bool:
    """Whether a book's only heading is the book's own, and numbered stories stand under it."""
    numbered = [kid for kid in top.children if is_numbered(kid.title)]
    if top is root or len(numbered) < 3:
        return False
    lengths = sorted(kid.num_words() for kid in numbered)
    return lengths[len(lengths) // 2] >= NUMBERED_STORY_WORDS


def _nest_numerals(children: Sequence[Section]) -> list[Section]:
    """Chapters that follow a titled section in a flat list become its children."""
    nested: list[Section] = []
    for child in children:
        last = nested[-1] if nested else None
        if last is not None and is_chapter(child.title) and not is_part(last.title):
            last.children.append(child)
        else:
            nested.append(child)
    return nested


def _text(section: Section, top: bool = True) -> Iterator[str]:
    """Paragraphs of a story; a titled chapter keeps its title, a numeral becomes a scene break."""
    if not top:
        yield SCENE_BREAK
        if section.title and not is_numeral(section.title):
            yield tidy_title(section.title)
    yield from section.blocks
    for child in section.children:
        yield from _text(child, top=False)
    if not top:
        yield SCENE_BREAK
