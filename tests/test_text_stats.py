"""Counts and rates against hand-counted texts, and their bounds on any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_fast.text_stats import (
    count_words,
    duplicate_lines,
    local_repeated_share,
    ngrams,
    repeated_share,
    token_windows,
    tokenize,
    visible_share,
)


@pytest.mark.parametrize(
    ("text", "whitespace", "word_chars"),
    [
        ("", 0, 0),
        (" \n\t ", 0, 0),
        ("one two", 2, 2),
        ("Don't stop - ever.", 4, 4),
        ("She didn't; he'd.", 3, 5),
        ("a&nbsp;b", 2, 2),
        ("Tom &amp; Ann", 3, 2),
        ("well-known\u2014fact", 1, 3),
        ("caf\u00e9 \u4f60\u597d", 2, 2),
    ],
)
def test_count_words(text, whitespace, word_chars):
    assert count_words(text) == count_words(text, "whitespace") == whitespace
    assert count_words(text, "word_chars") == word_chars


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0.0), ("ab", 1.0), ("a ", 0.5), ("\u200b\u200b\u200ba", 0.25), ("\n\n\n\n", 0.0)],
)
def test_visible_share(text, share):
    assert visible_share(text) == share


def test_tokens_are_words_or_single_marks_in_lower_case():
    assert tokenize("Don't GO\u2014now!!") == ["don", "'", "t", "go", "\u2014", "now", "!", "!"]


def test_ngrams():
    assert ngrams("abcde", 4) == [tuple("abcd"), tuple("bcde")]
    assert ngrams("abc", 4) == []


@pytest.mark.parametrize(
    ("items", "share"), [("", 0.0), ("abc", 0.0), ("aab", 1 / 3), ("aaaa", 3 / 4), ("abab", 0.5)]
)
def test_repeated_share_counts_occurrences_after_the_first(items, share):
    assert repeated_share(items) == pytest.approx(share)


@pytest.mark.parametrize(
    ("items", "reach", "share"),
    [("", 2, 0.0), ("aba", 2, 1 / 3), ("abca", 2, 0.0), ("abca", 3, 0.25), ("aaaa", 1, 0.75)],
)
def test_local_share_looks_back_as_far_as_it_should(items, reach, share):
    assert local_repeated_share(items, reach) == pytest.approx(share)


def test_local_share_at_the_edge_of_64():
    items = [*range(64), 0]  # exactly 64 before
    assert local_repeated_share(items, 64) == pytest.approx(1 / 65)
    assert local_repeated_share([*range(65), 0], 64) == 0.0


def test_local_share_equals_the_definition():
    items = [i * i % 11 for i in range(200)]
    slow = sum(item in items[max(0, i - 5) : i] for i, item in enumerate(items)) / len(items)
    assert local_repeated_share(items, 5) == pytest.approx(slow)


def test_duplicate_lines_ignore_blank_lines_and_indentation():
    assert duplicate_lines("a\n\n  a\nb\n \n") == pytest.approx(1 / 3)
    assert duplicate_lines("\n\n") == 0.0


@pytest.mark.parametrize(
    ("num_words", "sizes"),
    [(0, [0]), (5, [5]), (10, [10]), (11, [10, 6]), (15, [10, 10]), (16, [10, 10, 6])],
)
def test_windows(num_words, sizes):
    text = " ".join(f"w{i}" for i in range(num_words))
    assert [len(w) for w in token_windows(text, window=10, stride=5)] == sizes


@given(st.integers(0, 80))
def test_windows_cover_every_word(num_words):
    words = [f"w{i}" for i in range(num_words)]
    windows = list(token_windows(" ".join(words), window=10, stride=5))
    assert {token for window in windows for token in window} == set(words)


@given(st.lists(st.integers(0, 5), max_size=200))
def test_shares_are_bounded_and_local_is_at_most_global(items):
    assert 0 <= local_repeated_share(items, 64) <= repeated_share(items) + 1e-12 < 1
