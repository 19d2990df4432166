"""Text as its writer meant it."""

from __future__ import annotations

import pytest

from polaris_fast.prepare.clean import clean_blocks, clean_text
from polaris_fast.prepare.sources.wrapping import unwrap


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("He said \u00e2\u20ac\u0153no\u00e2\u20ac\u009d, didn\u00e2\u20ac\u2122t he?",
         "He said \u201cno\u201d, didn\u2019t he?"),
        ("A caf\u00e9 in Troms\u00f8, 5\u00b0 \u2014 na\u00efve", None),  # sound: as it is
        ("un\u00adder\u200bstood\ufeff", "understood"),
        ("a\u00a0b\u2003c\td", "a b c d"),
        ("word[12] and.[3] end[a]", "word and. end"),
        ("cut [Pg 12] here", "cut here"),
        ("It was _very_ cold", "It was very cold"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", None),  # Persian
        ("\u0915\u094d\u200d\u0937 \U0001f469\u200d\U0001f680", None),  # Hindi, an astronaut
        ("\u200c", ""),
        ("snake_case_name stays", None),
        ("half of a pair \ud83d", "half of a pair"),
    ],
)  # fmt: skip
def test_characters(raw: str, clean: str | None) -> None:
    assert clean_text(raw) == (raw if clean is None else clean)


def test_scene_breaks_are_one_sign_and_never_first_last_or_double() -> None:
    blocks = ["***", "One.", "#", "* * *", "Two.", "\u2042", "Three.", "---", "THE END"]
    assert clean_blocks(blocks) == ["One.", "* * *", "Two.", "* * *", "Three."]


def test_the_repeated_title_goes() -> None:
    assert clean_blocks(["THE WELL", "One."], "The Well") == ["One."]


def test_page_numbers_go_and_cut_sentences_are_joined() -> None:
    blocks = [
        "The river ran past the",
        "12",
        "old mill. It was dark.",
        "- 13 -",
        "Page 14",
        "Done.",
    ]
    assert clean_blocks(blocks) == ["The river ran past the old mill. It was dark.", "Done."]
    paged = ["One.", "41", "Two.", "42", "Three.", "43", "Four."]
    assert clean_blocks(paged) == ["One.", "Two.", "Three.", "Four."]


def test_section_numbers_are_breaks_and_not_pages() -> None:
    assert clean_blocks(["1", "One.", "2", "Two.", "3", "Three."]) == [
        "One.", "* * *", "Two.", "* * *", "Three.",
    ]  # fmt: skip


def test_a_digit_that_is_no_number_is_text() -> None:
    blocks = ["One.", "\u00b2", "Two.", "\u2460"]
    assert clean_blocks(blocks) == blocks


def test_wrapped_prose_is_joined_and_verse_is_not() -> None:
    prose = [
        "The lamp had burned since the first week of that winter and no one in the",
        "village could say any more who had lit it, or for whom it was meant to be-",
        "gin with.",
    ]
    verse = ["Roses are red,", "violets blue,", "and the sea is neither."]
    joined, kept = unwrap([prose, verse])
    assert joined.endswith("meant to begin with.") and "\n" not in joined
    assert kept.split("\n") == verse
    assert unwrap([["To the mayor", "Main Street"]]) == ["To the mayor\nMain Street"]


def test_a_long_run_of_signs_takes_no_time() -> None:
    assert clean_blocks(["\\" * 5000 + "x", "-" * 5000 + "x"]) != []
