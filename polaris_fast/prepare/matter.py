"""Front and back matter: what stands in an anthology and is no story.

Known by its role (`epub:type`, `role="doc-..."`, the guide), by its title, or by what it says.
"""

from __future__ import annotations

import re

from .document import Section

# Words of the EPUB structural semantics vocabulary and of OPF guides, and what they are called.
_ROLES = {
    **dict.fromkeys(
        ("cover", "titlepage", "title-page", "halftitlepage", "seriespage", "frontispiece"),
        "title page",
    ),
    **dict.fromkeys(("copyright-page", "imprint", "imprimatur", "colophon"), "copyright page"),
    **dict.fromkeys(("toc", "landmarks", "loi", "lot", "page-list", "index"), "contents"),
    **dict.fromkeys(
        ("foreword", "preface", "introduction", "preamble", "dedication", "epigraph", "credits"),
        "front matter",
    ),
    **dict.fromkeys(
        (
            "afterword", "acknowledgments", "acknowledgements", "appendix", "bibliography",
            "glossary", "contributors", "other-credits", "errata", "endnotes", "footnotes",
            "rearnotes", "notes", "conclusion-note", "credit",
        ),
        "back matter",
    ),
}  # fmt: skip
ROLES = frozenset(_ROLES)

_TITLES = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("title page", r"cover|(half[- ]?)?title( page)?|frontispiece"),
        ("copyright page", r"copyright( page| notice| information)?|imprint|colophon|permissions"),
        ("contents", r"(table of )?contents|index( of .*)?|list of (stories|illustrations|plates)"),
        (
            "front matter",
            r"(the )?(author'?s |editor'?s |publisher'?s |translator'?s )?"
            r"(preface|foreword|introduction|introductory( note)?)"
            r"(,? by .*| to (the|this) .*|s)?",
        ),
        ("front matter", r"dedication|epigraph|about (this|the) (book|e-?book|edition)"),
        ("front matter", r"praise for .*|advance praise.*|(an? )?note (on|about) the .*"),
        ("front matter", r"(a |an )?(note|word) from the (author|editor|publisher)s?"),
        ("front matter", r"(author|editor|publisher|translator)'?s?'? notes?"),
        (
            "back matter",
            r"afterword( by .*)?|acknowledge?ments?|(story )?credits|appendix( \w+)?|bibliography"
            r"|glossary|endnotes|footnotes|notes|contributors|biographical notes?|further reading"
            r"|(notes )?on the (authors|contributors)|copyright acknowledge?ments",
        ),
        ("back matter", r"about the (author|editor|contributor|translator|publisher)s?"),
        ("back matter", r"(also|more|other (books|titles|works)) (by|from) .*"),
        ("back matter", r"by the same author|newsletter|(an )?excerpt from .*|a preview of .*"),
        ("back matter", r"transcriber'?s?'? notes?|(the )?full project gutenberg.* license"),
    )
)  # fmt: skip
_EDGES = re.compile(r"^\W+|\W+$")
_COPYRIGHT = re.compile(
    r"all rights reserved|\bisbn\b|library of congress|first published|copyright \W{0,3}\d{4}"
    r"|\N{COPYRIGHT SIGN} ?\d{4}|printed in|work of fiction|reproduced .{0,40}without",
    re.IGNORECASE,
)
_MAX_NOTICE_WORDS = 1500  # a longer text that speaks of copyright is a story that does so
_LISTED_LINE = re.compile(r".*?(\.{3,}|\s{2,}|\t)\s*\d{1,4}")


def matter_of(section: Section) -> tuple[str, str] | None:
    """(what it is, how it is known) when a section is front or back matter, else None."""
    for role in sorted(section.roles):
        if role in _ROLES:
            return _ROLES[role], f"marked as {role}"
    title = _EDGES.sub("", section.title.replace("\u2019", "'"))
    for kind, pattern in _TITLES:
        if pattern.fullmatch(title):
            return kind, f'its title is "{title}"'
    return _by_content(section)


def _by_content(section: Section) -> tuple[str, str] | None:
    if section.children or not section.blocks:
        return None
    text = "\n".join(section.blocks)
    words = len(text.split())
    if words > _MAX_NOTICE_WORDS:
        return None
    hits = {found.group().lower() for found in _COPYRIGHT.finditer(text)}
    if len(hits) >= 2 or (hits and words <= 150):
        return "copyright page", f'it says "{min(hits)}"'
    lines = [line for block in section.blocks for line in block.splitlines() if line.strip()]
    listed = sum(bool(_LISTED_LINE.fullmatch(line.strip())) for line in lines)
    if len(lines) >= 4 and listed >= 0.6 * len(lines):
        return "contents", "its lines end in page numbers"
    return None
