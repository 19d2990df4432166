"""Every format to the same stories, and every broken file to one line."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from polaris_fast.prepare import work as work_module
from polaris_fast.prepare.document import Document, Section, SourceError
from polaris_fast.prepare.sources.archive import Archive
from polaris_fast.prepare.sources.epub import read_epub
from polaris_fast.prepare.sources.html import read_html
from polaris_fast.prepare.sources.markdown import read_markdown
from polaris_fast.prepare.sources.text import read_text
from polaris_fast.prepare.stories import find_stories
from polaris_fast.prepare.work import Portion, Rules, portions, work

from .books import Part, prose, write_epub

RULES = Rules(min_words=50, max_words=12000, one_story_per_file=False)


def stories_of(document: Document) -> list[tuple[str, str]]:
    found = find_stories(document, max_words=12000)
    return [(draft.title, draft.author) for draft in found.drafts]


@pytest.mark.parametrize("ncx", [False, True])
def test_the_contents_of_an_epub_divide_it(tmp_path: Path, ncx: bool) -> None:
    parts = [
        Part("Part One: Water", ""),
        Part("The Well", prose(1), depth=1),
        Part("The Ferry", prose(2), depth=1),
        Part("", prose(3), heading=""),  # the ferry's second page
        Part("Part Two: Fire", ""),
        Part("The Forge", prose(4), depth=1),
        Part("I", prose(5), depth=2),
        Part("II", prose(6), depth=2),
    ]
    book = write_epub(tmp_path / "b.epub", parts, creators=[("Ann Lee", "aut")], ncx=ncx)
    document = read_epub(book, "b.epub")
    titles = ["The Well", "The Ferry", "The Forge"]
    assert stories_of(document) == [(title, "Ann Lee") for title in titles]
    drafts = find_stories(read_epub(book, "b.epub"), max_words=12000).drafts
    assert prose(3).split("\n\n")[-1] in drafts[1].blocks
    assert prose(6).split("\n\n")[-1] in drafts[2].blocks
    assert document.rights == "All rights with the authors"


def test_an_unlisted_copyright_page_after_a_story_is_not_part_of_it(tmp_path: Path) -> None:
    notice = Part("", "Copyright 2020 by Ann Lee. All rights reserved.", heading="")
    parts = [Part("The Well", prose(1)), Part("The Ferry", prose(2)), notice]
    found = find_stories(read_epub(write_epub(tmp_path / "b.epub", parts), "b"), max_words=12000)
    assert [d.title for d in found.drafts] == ["The Well", "The Ferry"]
    assert not any("rights reserved" in block for d in found.drafts for block in d.blocks)
    assert [d.kind for d in found.drops] == ["copyright page"]


def test_named_entities_marks_of_notes_and_page_breaks_in_xhtml(tmp_path: Path) -> None:
    text = (
        "<p>One&nbsp;two<sup>3</sup> caf&eacute;<a epub:type='noteref' href='#n'>4</a>.</p>\n\n"
        "<p>He <span epub:type='pagebreak' title='7'>7</span>ran.</p>\n\n"
        "<hr/>\n\n<aside epub:type='footnote'><p>A note.</p></aside><p>End of it.</p>"
    )
    parts = [Part("The Well", text), Part("The Ferry", prose(2))]
    document = read_epub(write_epub(tmp_path / "b.epub", parts), "b")
    blocks = find_stories(document, max_words=12000).drafts[0].blocks
    assert blocks == ("One\u00a0two caf\u00e9.", "He ran.", "* * *", "End of it.")


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        ("XIX<sup>e</sup> si\u00e8cle", "XIXe si\u00e8cle"),
        ("M<sup>r</sup> Bell", "Mr Bell"),
        ("E = mc<sup>2</sup>", "E = mc\u00b2"),
        ("<i>x</i><sup>2</sup> of 10<sup>12</sup>", "x\u00b2 of 10\u00b9\u00b2"),
        ("the well<sup>12</sup>", "the well"),
        ("the well.<sup>3</sup>", "the well."),
        ("the well<sup>*</sup><sup>\u2020</sup>", "the well"),
        ("the well<sup>[b]</sup>", "the well"),
        ("the well<sup><a href='#n'>b</a></sup>", "the well"),
        ("the km<a href='#n'><sup>2</sup></a>", "the km"),
        ("the <a href='#n'>XIX<sup>e</sup></a>", "the XIXe"),
        ("the <i>well</i><sup>1</sup>", "the well"),
    ],
)
def test_a_raised_sign_is_the_mark_of_a_note_or_text(
    tmp_path: Path, raised: str, text: str
) -> None:
    page = f"<html><body><h1>{raised}</h1><p>{raised}</p></body></html>"
    (tmp_path / "p.html").write_text(page, encoding="utf-8")
    (section,) = read_html(tmp_path / "p.html", "p.html").root.children
    assert (section.title, section.blocks) == (text, [text])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"PK not a zip"), "no readable zip"),
        (lambda p: write_epub(p, []), "no page that is there"),
        (lambda p: write_epub(p, [Part("A", "x")], extra=[("META-INF/encryption.xml",
            "<encryption><EncryptionMethod Algorithm='http://www.w3.org/2001/04/xmlenc#aes'/>"
            "</encryption>")]), "encrypted"),
        (lambda p: _zip(p, {"META-INF/container.xml": "<container/>"}), "names no package"),
    ],
)  # fmt: skip
def test_a_broken_epub_is_one_clear_line(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "b.epub")
    outcome = work(Portion(tmp_path / "b.epub", "b.epub"), RULES)
    assert not outcome.stories
    (drop,) = outcome.drops
    assert drop.kind == "unreadable" and message in drop.detail and "\n" not in drop.detail


def _zip(path: Path, members: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in members.items():
            file.writestr(name, text)


@pytest.mark.parametrize("ncx", [False, True])
def test_a_page_is_found_whatever_the_case_and_composition_of_its_name(
    tmp_path: Path, ncx: bool
) -> None:
    parts = [Part("The Well", prose(1)), Part("The Ferry", prose(2)), Part("The Forge", prose(3))]
    book = write_epub(tmp_path / "b.epub", parts, ncx=ncx)
    contents = "OEBPS/toc.ncx" if ncx else "OEBPS/nav.xhtml"
    with zipfile.ZipFile(book) as made:
        members = {name: made.read(name) for name in made.namelist()}
    for name in ("OEBPS/book.opf", contents):
        members[name] = members[name].replace(b"p1.xhtml", "caf\u00e9.xhtml".encode())
    members["OEBPS/cafe\u0301.xhtml"] = members.pop("OEBPS/p1.xhtml")
    members["OEBPS/P0.XHTML"] = members.pop("OEBPS/p0.xhtml")
    with zipfile.ZipFile(book, "w") as file:
        for name, raw in members.items():
            file.writestr(name, raw)
    outcome = work(Portion(book, "b.epub"), RULES)
    assert [f.story.title for f in outcome.stories] == ["The Well", "The Ferry", "The Forge"]
    assert [f.story.text for f in outcome.stories] == [prose(1), prose(2), prose(3)]
    assert not outcome.drops


def test_a_page_that_is_listed_and_not_there_is_told(tmp_path: Path) -> None:
    parts = [Part("The Well", prose(1)), Part("The Ferry", prose(2)), Part("The Forge", prose(3))]
    book = write_epub(tmp_path / "b.epub", parts)
    with zipfile.ZipFile(book) as made:
        members = {name: made.read(name).decode() for name in made.namelist()}
    del members["OEBPS/p1.xhtml"]
    _zip(book, members)
    outcome = work(Portion(book, "b.epub"), RULES)
    assert [f.story.title for f in outcome.stories] == ["The Well", "The Forge"]
    (drop,) = outcome.drops
    assert (drop.kind, drop.where) == ("unreadable", "b.epub")
    assert drop.detail == "the page OEBPS/p1.xhtml is listed and not there"


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    _zip(tmp_path / "b.zip", {"bomb": "0" * (20 * 2**20), "fine": "ok"})
    with Archive(tmp_path / "b.zip") as archive:
        with pytest.raises(SourceError, match="beyond the limits"):
            archive.read("bomb")
        assert archive.read("fine") == b"ok"


def test_entities_of_a_document_type_are_not_expanded(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    page = tmp_path / "p.xhtml"
    page.write_text(
        f'<?xml version="1.0"?><!DOCTYPE html [<!ENTITY s SYSTEM "{secret.as_uri()}">'
        '<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
        '<html xmlns="http://www.w3.org/1999/xhtml"><body><p>x &s; &b; y</p></body></html>'
    )
    text = "".join(b for s in read_html(page, "p").root.walk() for b in s.blocks)
    assert "secret" not in text and "aaaa" not in text and text.startswith("x")


def test_markdown_html_and_text_give_the_same_stories(tmp_path: Path) -> None:
    one, two = prose(1), prose(2)
    (tmp_path / "a.md").write_text(f"# The Well\n\n*by Ann Lee*\n\n{one}\n\n# The Ferry\n\n{two}")
    body = "".join(
        f"<h2>{t}</h2>" + "".join(f"<p>{p}</p>" for p in s.split("\n\n"))
        for t, s in (("The Well", one), ("The Ferry", two))
    )
    (tmp_path / "a.html").write_text(f"<title>Book</title><nav>menu</nav>{body}")
    (tmp_path / "a.txt").write_text(f"THE WELL\n\n{one}\n\n\n\nTHE FERRY\n\n{two}\n")
    documents = [
        read_markdown(tmp_path / "a.md", "a"),
        read_html(tmp_path / "a.html", "a"),
        read_text(tmp_path / "a.txt", "a"),
    ]
    assert stories_of(documents[0]) == [("The Well", "Ann Lee"), ("The Ferry", "")]
    for document in documents:
        drafts = find_stories(document, max_words=12000).drafts
        assert [d.title for d in drafts] == ["The Well", "The Ferry"]
        assert ["\n\n".join(d.blocks) for d in drafts] == [one, two]


def test_a_gutenberg_text_loses_its_frame_and_its_contents_list(tmp_path: Path) -> None:
    def wrapped(seed: int) -> str:
        lines, line = [], ""
        for word in prose(seed, 120).replace("\n\n", " ").split():
            if len(line) + len(word) > 70:
                lines.append(line)
                line = ""
            line = f"{line} {word}".strip()
        return "\n".join([*lines, line])

    text = (
        "The Project Gutenberg eBook of Night Tales\n\nTitle: Night Tales\n\nAuthor: Ann Lee\n\n"
        "*** START OF THE PROJECT GUTENBERG EBOOK NIGHT TALES ***\n\n\nNIGHT TALES\n\n\n"
        "CONTENTS\n\n  The Well ...... 1\n  The Ferry ..... 40\n\n\n\nTHE WELL\n\n"
        f"{wrapped(1)}\n\nII\n\n{wrapped(2)}\n\n\n\nTHE FERRY\n\n{wrapped(3)}\n\n"
        "*** END OF THE PROJECT GUTENBERG EBOOK NIGHT TALES ***\nLicence text here."
    )
    (tmp_path / "n.txt").write_text(text)
    outcome = work(Portion(tmp_path / "n.txt", "n.txt"), RULES)
    well, ferry = (finished.story for finished in outcome.stories)
    assert (well.title, well.author, well.source) == ("The Well", "Ann Lee", "Night Tales")
    assert well.text.split("\n\n")[1] == "* * *"
    assert ferry.text == prose(3, 120).replace("\n\n", " ")


def test_a_file_that_names_no_book_belongs_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1))
    assert read_text(tmp_path / "a.txt", "novel/a.txt").folder == "novel"
    assert read_text(tmp_path / "a.txt", "a.txt").folder == ""
    framed = (
        "Title: {}\n\nAuthor: Ann Lee\n        Bo Ek\n\n*** START OF THIS PROJECT GUTENBERG X ***\n"
    )
    (tmp_path / "b.txt").write_text(framed.format("Night Tales") + prose(1))
    document = read_text(tmp_path / "b.txt", "shelf/b.txt")
    assert (document.folder, document.authors) == ("", ("Ann Lee; Bo Ek",))
    fields = "---\ntitle: {}\nauthor: Ann Lee\n---\n"
    for title, folder in (("Night Tales", ""), ("Chapter Two", "novel")):
        (tmp_path / "c.md").write_text(fields.format(title) + prose(1))
        assert read_markdown(tmp_path / "c.md", "novel/c.md").folder == folder


def test_a_story_without_headings_is_whole_and_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "the-long-way.txt").write_text(prose(1))
    assert stories_of(read_text(tmp_path / "the-long-way.txt", "the-long-way.txt")) == [
        ("the long way", "")
    ]


def test_rows_keep_what_they_have_and_bad_ones_are_named(tmp_path: Path) -> None:
    rows = [
        {"story": prose(1), "title": "A", "author": "Ann Lee", "prompt": "Tell of a well."},
        {"text": prose(2), "source": "shelf", "reasoning": "Think."},
        {"body": "no story field"},
    ]
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n{broken\n\n")
    (portion,) = portions([(path, "r.jsonl")])
    assert isinstance(portion, Portion)
    outcome = work(portion, RULES)
    first, second = (finished.story for finished in outcome.stories)
    assert (first.prompt, first.prompt_from, first.source) == (
        "Tell of a well.", "source", "r.jsonl",
    )  # fmt: skip
    assert (second.reasoning, second.source, second.prompt_from) == (
        "Think.", "shelf", "extractive",
    )  # fmt: skip
    assert [d.where for d in outcome.drops] == ["r.jsonl:3", "r.jsonl:4"]
    assert "its fields are: body" in outcome.drops[0].detail


def test_large_files_of_rows_are_cut_into_portions_with_the_right_numbers(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    rows = [{"story": f"{i} {prose(i, 60)}"} for i in range(150)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    found = list(portions([(tmp_path / "r.parquet", "r.parquet")]))
    assert [p.first_row for p in found if isinstance(p, Portion)] == [1, 65, 129]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    (drop,) = portions([(tmp_path / "bad.parquet", "bad.parquet")])
    assert drop.kind == "unreadable"  # type: ignore[union-attr]


def test_a_row_that_is_not_utf8_is_left_out_and_the_others_stay(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    texts = pyarrow.array([prose(1).encode(), b"caf\xe9", prose(2).encode()])
    path = tmp_path / "r.parquet"
    parquet.write_table(pyarrow.table({"story": texts.view(pyarrow.string())}), path)
    (portion,) = portions([(path, "r.parquet")])
    assert isinstance(portion, Portion)
    outcome = work(portion, RULES)
    assert len(outcome.stories) == 2
    (drop,) = outcome.drops
    assert drop.where == "r.parquet:2" and "story is not UTF-8" in drop.detail


def test_a_text_that_no_step_foresaw_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = work_module.clean_blocks

    def fails(blocks, title):
        if title == "The Well":
            raise ValueError("no such text")
        return clean(blocks, title)

    monkeypatch.setattr(work_module, "clean_blocks", fails)
    (tmp_path / "a.md").write_text(f"# The Well\n\n{prose(1)}\n\n# The Ferry\n\n{prose(2)}")
    outcome = work(Portion(tmp_path / "a.md", "a.md"), RULES)
    assert [finished.story.title for finished in outcome.stories] == ["The Ferry"]
    (drop,) = outcome.drops
    assert (drop.kind, drop.where, drop.title) == ("unreadable", "a.md", "The Well")
    assert drop.detail == "ValueError: no such text"


def test_a_section_tree_can_be_walked() -> None:
    tree = Section("a", ["x y"], [Section("b", ["z"]), Section("c")])
    assert [s.title for s in tree.walk()] == ["a", "b", "c"] and tree.num_words() == 3


def _page(text: str, head: str = "") -> str:
    body = "".join(f"<p>{paragraph}</p>" for paragraph in text.split("\n\n"))
    return f"<html><head>{head}<title>The Well</title></head><body>{body}</body></html>"


def _read_page(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    return "\n\n".join(b for s in read_html(path, path.name).root.walk() for b in s.blocks)


QUOTED = "\n\n".join(f"\u201cShe said {p}\u201d" for p in prose(1, 1800).split("\n\n"))
RUSSIAN = "\n\n".join(["\u0441\u0442\u0430\u0440\u044b\u0439 \u0434\u043e\u043c " * 60] * 9)


@pytest.mark.parametrize("head", ["", "<meta charset='utf-8'>", "<meta charset=windows-1252>"])
def test_a_page_with_one_bad_byte_is_read_to_its_end(tmp_path: Path, head: str) -> None:
    raw = _page(QUOTED, head).encode().replace(b"She", b"\xe9She", 1)
    text = _read_page(tmp_path / "a.html", raw)
    assert text == QUOTED.replace("She", "\ufffdShe", 1)
    xhtml = b'<?xml version="1.0"?>\n' + raw
    assert _read_page(tmp_path / "a.xhtml", xhtml) == text
    undefined = _page(f"{prose(1)} caf\u00e9").encode("cp1252").replace(b"<p>", b"<p>\x9d", 1)
    assert _read_page(tmp_path / "b.html", undefined) == f"\ufffd{prose(1)} caf\u00e9"


def test_a_book_with_a_bad_byte_in_its_package_keeps_all_its_pages(tmp_path: Path) -> None:
    book = write_epub(tmp_path / "b.epub", [Part("The Well", QUOTED), Part("The Ferry", prose(2))])
    with zipfile.ZipFile(book) as made:
        members = {name: made.read(name) for name in made.namelist()}
    members["OEBPS/book.opf"] = members["OEBPS/book.opf"].replace(b"A Shelf", b"A \x9dShelf")
    members["OEBPS/p0.xhtml"] = members["OEBPS/p0.xhtml"].replace(b"She", b"\xe9She", 1)
    with zipfile.ZipFile(book, "w") as file:
        for name, raw in members.items():
            file.writestr(name, raw)
    outcome = work(Portion(book, "b.epub"), RULES)
    assert [f.story.title for f in outcome.stories] == ["The Well", "The Ferry"]
    assert outcome.stories[0].story.words == len(QUOTED.split())


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("<meta charset=windows-1251>", "cp1251"),
        ("<meta http-equiv='Content-Type' content='text/html; charset=koi8-r'>", "koi8-r"),
        ("<meta charset='utf-16'>", "utf-8"),
        ("<meta charset='no-such'>", "utf-8"),
        ("", "utf-8-sig"),
        ("", "utf-16"),
    ],
)
def test_a_page_is_read_in_the_encoding_that_it_declares(
    tmp_path: Path, head: str, encoding: str
) -> None:
    want = "\n\n".join(" ".join(p.split()) for p in RUSSIAN.split("\n\n"))
    assert _read_page(tmp_path / "a.html", _page(RUSSIAN, head).encode(encoding)) == want
    xhtml = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>\n{_page(RUSSIAN)}'
    assert _read_page(tmp_path / "a.xhtml", xhtml.encode(encoding)) == want


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "cp866", "cp1253"])
def test_text_in_an_unknown_encoding_is_left_out_and_told(tmp_path: Path, encoding: str) -> None:
    text = RUSSIAN if encoding != "cp1253" else "\u03c4\u03bf \u03c3\u03c0\u03b9\u03c4\u03b9 " * 90
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (tmp_path / "a.md").write_bytes(text.encode(encoding))
    script = f"<style>{'p {color: red} ' * 900}</style>"
    (tmp_path / "a.html").write_bytes(_page(text, script).encode(encoding))
    for name in ("a.txt", "a.md", "a.html"):
        outcome = work(Portion(tmp_path / name, name), RULES)
        assert not outcome.stories
        (drop,) = outcome.drops
        assert drop.detail == "encoding not known; convert it to UTF-8"


def test_a_page_with_nothing_but_an_accented_name_does_not_cost_the_book(tmp_path: Path) -> None:
    parts = [Part("The Well", prose(1)), Part("", "\u00c9\u00c9", heading="")]
    book = write_epub(tmp_path / "b.epub", parts)
    with zipfile.ZipFile(book) as made:
        members = {name: made.read(name) for name in made.namelist()}
    page = "<html><body><p>\u00c9\u00c9</p></body></html>"
    members["OEBPS/p1.xhtml"] = page.encode("cp1252")
    with zipfile.ZipFile(book, "w") as file:
        for name, raw in members.items():
            file.writestr(name, raw)
    assert [s.story.title for s in work(Portion(book, "b.epub"), RULES).stories] == ["The Well"]


def test_western_text_in_its_old_encoding_is_read(tmp_path: Path) -> None:
    text = (
        "\u00c6ttin \u00fe\u00f3 s\u00e1 \u00e1 \u00f6llu \u201cg\u00f3\u00f0u\u201d \u2014 \u20ac"
    )
    (tmp_path / "a.txt").write_bytes(f"{prose(1)} {text}".encode("cp1252"))
    blocks = [b for s in read_text(tmp_path / "a.txt", "a").root.walk() for b in s.blocks]
    assert blocks[-1].endswith(text)
