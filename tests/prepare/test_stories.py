"""What is one story, what holds stories, and what is neither."""

from __future__ import annotations

import pytest

from polaris_fast.prepare.bylines import byline_of, looks_like_name, split_titles
from polaris_fast.prepare.document import Document, Section
from polaris_fast.prepare.headings import is_chapter, is_numbered, is_part, tidy_title
from polaris_fast.prepare.matter import matter_of
from polaris_fast.prepare.names import name_key, name_keys
from polaris_fast.prepare.stories import find_stories

from .books import prose


def leaf(title: str, seed: int = 0, words: int = 60, **fields) -> Section:
    return Section(title, prose(seed, words).split("\n\n"), **fields)


def titles(*sections: Section, authors: tuple[str, ...] = (), whole: bool = False) -> list[str]:
    root = Section(children=list(sections))
    document = Document("book", "Book", "Book", authors, root=root)
    return [d.title for d in find_stories(document, max_words=12000, whole=whole).drafts]


def test_numerals_after_a_title_belong_to_it_and_a_novel_is_one_story() -> None:
    flat = [leaf("Ash"), leaf("I"), leaf("II"), leaf("Birch"), leaf("1"), leaf("2")]
    assert titles(*flat) == ["Ash", "Birch"]
    assert titles(leaf("Prologue"), leaf("Chapter One: Fog"), leaf("Chapter Two")) == ["Book"]
    parts = [Section(f"Part {n}", children=[leaf("1"), leaf("2")]) for n in ("One", "Two")]
    assert titles(*parts) == ["Book"]


def test_a_part_with_titled_sections_is_a_container() -> None:
    parts = [Section("Part One", children=[leaf("Ash"), leaf("Elm")]), leaf("Yew")]
    assert titles(*parts) == ["Ash", "Elm", "Yew"]


def test_numbered_titles_are_stories_of_a_book_and_chapters_of_a_story() -> None:
    assert titles(leaf("I. Ash"), leaf("II. Birch"), leaf("III. Elm")) == ["Ash", "Birch", "Elm"]
    inner = Section("Yew", children=[leaf("1. The Letter"), leaf("2. The Reply")])
    assert titles(inner, leaf("Ash")) == ["Yew", "Ash"]


def test_a_line_of_the_contents_is_one_story_unless_it_is_too_long() -> None:
    kids = [leaf("The Letter", 1, 400), leaf("The Reply", 2, 400)]
    assert titles(Section("Yew", children=kids, listed=True), leaf("Ash", listed=True)) == [
        "Yew", "Ash",
    ]  # fmt: skip
    long = [leaf("The Letter", 1, 7000), leaf("The Reply", 2, 7000)]
    found = titles(Section("Yew", children=long, listed=True), leaf("Ash", listed=True))
    assert found == ["The Letter", "The Reply", "Ash"]


def test_chapter_titles_stay_in_the_text_and_numerals_become_breaks() -> None:
    story = Section("Yew", ["Once."], [leaf("Chapter Two: Fog", 1), leaf("III", 2)])
    root = Section(children=[story, leaf("Ash")])
    (draft, _) = find_stories(Document("b", "b", root=root), max_words=12000).drafts
    assert draft.blocks[:3] == ("Once.", "* * *", "Chapter Two: Fog")
    assert "III" not in draft.blocks


def test_one_story_per_file_takes_the_file_whole() -> None:
    """A story may be called "Preface", and its file holds nothing else."""
    sections = [leaf("Preface", 1), leaf("Ash", 2), leaf("Elm", 3)]
    document = Document("book", "Book", "Book", root=Section(children=sections))
    found = find_stories(document, max_words=12000, whole=True)
    (draft,) = found.drafts
    assert draft.title == "Book" and not found.drops
    assert sum(len(block.split()) for block in draft.blocks if block != "* * *") == (
        sum(section.num_words() for section in sections) + len(("Preface", "Ash", "Elm"))
    )
    alone = Document("book", "Book", "Book", root=Section(children=[leaf("Preface", 1)]))
    assert len(find_stories(alone, max_words=12000, whole=True).drafts) == 1


def test_a_stray_heading_does_not_cut_a_story_in_two() -> None:
    root = Section(blocks=prose(1, 900).split("\n\n"), children=[leaf("A Stray Line", 2, 500)])
    (draft,) = find_stories(Document("b", "b", "Yew", root=root), max_words=12000).drafts
    assert draft.title == "Yew" and "A Stray Line" in draft.blocks


def test_an_introduction_inside_a_part_is_told_as_left_out() -> None:
    root = Section(children=[Section("Part One", prose(1, 80).split("\n\n"),
                                     [leaf("Ash"), leaf("Elm")]), leaf("Yew")])  # fmt: skip
    found = find_stories(Document("b", "b", root=root), max_words=12000)
    assert [d.title for d in found.drafts] == ["Ash", "Elm", "Yew"]
    assert [(d.kind, d.title) for d in found.drops] == [("between stories", "Part One")]


@pytest.mark.parametrize(
    "title",
    ["Preface", "FOREWORD", "Introduction by Ann Lee", "Author\u2019s Note", "About the Author",
     "Also by Ann Lee", "Contents", "Copyright", "Acknowledgments", "A Note on the Text"],
)  # fmt: skip
def test_front_and_back_matter_is_known_by_its_title(title: str) -> None:
    assert matter_of(leaf(title)) is not None


@pytest.mark.parametrize(
    "title", ["The Introduction of Mr. Bell", "A Preface to Murder", "The Cover", "Notes of a Dog"]
)
def test_stories_with_such_words_in_their_titles_stay(title: str) -> None:
    assert matter_of(leaf(title)) is None


def test_matter_is_known_by_role_and_by_content() -> None:
    assert matter_of(leaf("Ash", roles=frozenset({"dedication"}))) == (
        "front matter", "marked as dedication",
    )  # fmt: skip
    notice = Section("", ["Copyright 2020 by A. Lee. All rights reserved.", "ISBN 978-0"])
    assert matter_of(notice)
    listing = Section("", ["Ash ..... 3", "Birch ..... 20", "Elm ..... 41", "Yew ..... 77"])
    assert matter_of(listing)
    # A long story in which somebody speaks of rights is a story.
    assert matter_of(Section("Ash", [*prose(1, 400).split("\n\n"), "All rights reserved!"])) is None


@pytest.mark.parametrize(
    ("texts", "known", "expected"),
    [
        (["Ash / Ann Lee", "Elm / Bo Ek"], (), [("Ash", "Ann Lee"), ("Elm", "Bo Ek")]),
        (["Ash by Ann Lee", "Elm by Bo Ek"], (), [("Ash", "Ann Lee"), ("Elm", "Bo Ek")]),
        (["Death by Drowning", "Elm", "Ash"], (), [("Death by Drowning", ""), ("Elm", ""),
                                                   ("Ash", "")]),
        (["Ash by Ann Lee", "Elm", "Yew"], ("Lee, Ann",), [("Ash", "Ann Lee"), ("Elm", ""),
                                                           ("Yew", "")]),
        (["Stand by Me", "Close by Us"], (), [("Stand by Me", ""), ("Close by Us", "")]),
    ],
)  # fmt: skip
def test_authors_in_the_contents(texts, known, expected) -> None:
    assert split_titles(texts, known) == expected


def test_bylines_and_names() -> None:
    assert byline_of("by H. G. Wells") == "H. G. Wells"
    assert byline_of("A story by ANN LEE") == "Ann Lee"
    assert byline_of("By noon the street was empty") == ""
    assert looks_like_name("Cora van Dyke") and looks_like_name("Finn St. John")
    assert not looks_like_name("the sea") and not looks_like_name("Me")
    assert name_key("Wells, H. G.") == name_key("H.G. Wells") == "hgwells"
    assert name_key("Various") == name_key("Anonymous") == ""


@pytest.mark.parametrize(
    "name",
    ["Stephen King", "King, Stephen", "King, Stephen, 1947-", "Stephen King (1947-)",
     "King, Stephen (Stephen Edwin), b. 1947", "Stephen King, 1947-2050", "Stephen King, Jr."],
)  # fmt: skip
def test_one_author_has_one_key_however_a_catalogue_writes_him(name: str) -> None:
    assert name_key(name) == "stephenking" and name_keys(name) == {"stephenking"}


@pytest.mark.parametrize(
    "names",
    ["Stephen King & Peter Straub", "Stephen King and Peter Straub", "King, Stephen; Straub, Peter",
     "King, Stephen, 1947- & Straub, Peter, 1943-2022", "King, Stephen, Straub, Peter"],
)  # fmt: skip
def test_each_of_several_authors_has_a_key(names: str) -> None:
    assert name_keys(names) == {"stephenking", "peterstraub"}


def test_a_comma_between_full_names_is_read_both_ways_and_numbers_are_no_dates() -> None:
    assert {"neilgaiman", "terrypratchett"} < name_keys("Neil Gaiman, Terry Pratchett")
    assert name_keys("Le Guin, Ursula K.") == {"ursulakleguin"}
    assert name_keys("Author 1234") == {"author1234"}
    assert name_keys("Various") == name_keys("") == frozenset()


def test_stories_of_a_book_by_two_are_by_both() -> None:
    root = Section(children=[leaf("Ash"), leaf("Elm", author="Ann Lee")])
    document = Document("b", "b", authors=("King, Stephen", "Straub, Peter"), root=root)
    drafts = find_stories(document, max_words=12000).drafts
    assert [d.author for d in drafts] == ["King, Stephen; Straub, Peter", "Ann Lee"]


def test_headings() -> None:
    assert all(map(is_chapter, ("", "3", "IV.", "- Two -", "Chapter Ten", "Scene 2", "Epilogue")))
    assert not any(map(is_chapter, ("Three Knocks", "Civilians", "Chapters of a Life", "I, Robot")))
    assert all(
        map(is_chapter, ("I", "XLII", "iv", "lv.", "(c)", "Chapter Iv", "_IV_", "Chapter xc"))
    )
    assert not any(map(is_chapter, ("Ill", "Civil", "Lili", "Vivi", "Xi", "Liv", "Vi", "liv")))
    assert not any(map(is_chapter, ("IIII", "VIC", "Chapter Civil War")))
    assert not is_numbered("CIVIL: A Story") and not is_part("Book Lili")
    assert is_part("PART TWO: The Sea") and is_part("Book II") and not is_part("Part of Me")
    assert is_numbered("IV. The Band") and not is_numbered("IV") and not is_numbered("Iv Moss")
    assert tidy_title("THE  RETURN OF THE KING") == "The Return of the King"
