"""Windowed 4-grams, compression and self-BLEU against values worked out by hand."""

from __future__ import annotations

import math
import zlib

import pytest

from polaris_fast.evaluate.diversity import diversity_measures
from polaris_fast.evaluate.repetition import compression_ratio, repetition_measures, self_bleu


def words(prefix: str, count: int) -> str:
    return " ".join(f"{prefix}{i}" for i in range(count))


def test_a_paragraph_said_again_shows_in_its_own_window_most():
    # 1,000 + 1,000 words: windows at 0, 500 and 1,000; the last two hold the repeated stretch
    story = f"{words('a', 1000)} {words('b', 500)} {words('b', 500)}"
    found = repetition_measures(story)
    # window 1,000-2,000: 997 4-grams, 500 + 497 starts; those wholly inside the second run repeat
    assert found["repetition_max"] == pytest.approx(497 / 997)
    # the other two windows hold the first run alone
    assert found["repetition_mean"] == pytest.approx(497 / 997 / 3)


def test_a_short_story_is_one_window():
    # "a b c d a b c d": 4-grams abcd bcda cdab dabc abcd, one of five again
    found = repetition_measures("a b c d a b c d")
    assert found["repetition_mean"] == found["repetition_max"] == pytest.approx(1 / 5)


def test_compression_is_bytes_over_deflated_bytes():
    text = "the sea the sea the sea " * 40
    assert compression_ratio(text) == len(text) / len(zlib.compress(text.encode(), 9))
    assert compression_ratio(text) > 10 > compression_ratio(words("x", 200))
    assert compression_ratio("") == 0.0


def test_self_bleu_of_equal_and_of_foreign_stories():
    story = "the old man sold his boat in spring"
    assert self_bleu([story, story]) == pytest.approx([1.0, 1.0])
    low = self_bleu([story, "nobody ever asked why we came here"])
    # no match at any order: .1 of 8, 7, 6 and 5 n-grams, and a brevity of 7 words: none for 8
    assert low[0] == pytest.approx((0.1 / 8 * 0.1 / 7 * 0.1 / 6 * 0.1 / 5) ** 0.25)


def test_self_bleu_by_hand():
    # a b c d e against a b c d f: 4/5, 3/4, 2/3, 1/2; equal lengths
    values = self_bleu(["a b c d e", "a b c d f"])
    assert values == pytest.approx([(4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25] * 2)


def test_self_bleu_clips_counts_and_punishes_brevity():
    # "a a a a" against "a b c d e f g h": one of four unigrams counts; half the length: e^(1 - 2)
    first = self_bleu(["a a a a", "a b c d e f g h"])[0]
    assert first == pytest.approx(math.exp(-1) * (1 / 4 * 0.1 / 3 * 0.1 / 2 * 0.1 / 1) ** 0.25)


def test_self_bleu_takes_the_reference_of_the_closest_length():
    others = ["a b c d e f g h i j k l", "a b c d"]
    assert self_bleu(["a b c d", *others])[0] == pytest.approx(1.0)  # no brevity against the second


def test_self_bleu_of_very_short_stories_uses_the_orders_they_have():
    assert self_bleu(["a b", "a b"]) == pytest.approx([1.0, 1.0])
    assert self_bleu(["", "a b"])[0] == 0.0
    with pytest.raises(ValueError, match="at least 2 stories, got 1"):
        self_bleu(["a"])


def test_distinct_n_by_hand():
    found = diversity_measures("a b a b")  # a, b of 4; ab, ba of 3; aba, bab of 2
    assert found == {
        "distinct_1": pytest.approx(2 / 4),
        "distinct_2": pytest.approx(2 / 3),
        "distinct_3": pytest.approx(1.0),
    }


def test_distinct_n_does_not_fall_with_length_alone():
    page = f"{words('a', 400)} {words('b', 100)} " * 2  # 1,000 words, half of them again
    one, four = diversity_measures(page)["distinct_1"], diversity_measures(page * 4)["distinct_1"]
    assert one == four == pytest.approx(0.5)
    assert diversity_measures("")["distinct_1"] == 0.0
