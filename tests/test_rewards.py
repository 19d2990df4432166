"""The reward of docs/training-runs.md against hand-computed tables, and its bounds on any story."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from polaris_fast.config import RewardConfig
from polaris_fast.rewards import (
    blank_penalty,
    clamp,
    compose_reward,
    length_band,
    length_penalty_band,
    length_score_ratio,
    ngram_repetition,
    self_repetition,
    windowed_repetition,
)
from polaris_fast.text_stats import tokenize
from polaris_fast.types import Scored

PAPER = RewardConfig()
RATIO = RewardConfig(length_reward="ratio", blank_min_words=5)


def distinct(num_words: int, start: int = 0) -> str:
    """A text without any repeated 4-gram."""
    return " ".join(f"w{i}" for i in range(start, start + num_words))


# length ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "low", "high"),
    [
        (4000, 3400, 5000),  # .15 T = 600, .25 T = 1000
        (1000, 650, 1600),  # both at their lower clamps: 350, 600
        (2400, 2040, 3000),  # 360, and 600 exactly
        (2333, 1983, 2933),  # 349.95 is clamped to 350, 583 to 600
        (2777, 2361, 3471),  # 416.55 and 694.25 are cut to 416 and 694
        (12000, 11000, 13500),  # both at their upper clamps: 1000, 1500
        (300, -50, 900),
        (20, -200, 750),  # T is 150 at least
    ],
)
def test_band_edges(target, low, high):
    assert length_band(target, PAPER) == (low, high)


@pytest.mark.parametrize(
    ("words", "target", "penalty"),
    [
        (3400, 4000, 0.0),
        (4000, 4000, 0.0),
        (5000, 4000, 0.0),
        (3399, 4000, 1 / 3400),
        (1700, 4000, 0.5),
        (0, 4000, 1.0),
        (5001, 4000, 1 / 5000),
        (7500, 4000, 0.5),
        (10000, 4000, 1.0),
        (99999, 4000, 1.0),
        (0, 300, 0.0),  # the lower edge is below zero: the blank penalty speaks instead
        (750, 20, 0.0),
        (1125, 20, 0.5),
    ],
)
def test_band_penalty(words, target, penalty):
    assert length_penalty_band(words, target, PAPER) == pytest.approx(penalty)


@pytest.mark.parametrize(
    ("words", "target", "score"),
    [
        (0, 40, 0.0),
        (40, 40, 1.0),
        (44, 40, 1.0),  # u = .0953
        (400 * math.exp(0.10), 400, 1.0),
        (400 * math.exp(-0.10), 400, 1.0),
        (400 * math.exp(0.40), 400, 0.5),
        (400 * math.exp(-0.40), 400, 0.5),
        (400 * math.exp(0.55), 400, 0.25),
        (80, 40, (0.70 - math.log(2)) / 0.60),  # twice as long: .0114
        (20, 40, (0.70 - math.log(2)) / 0.60),  # half as long: the same
        (81, 40, 0.0),
        (1, 4000, 0.0),
    ],
)
def test_ratio_score(words, target, score):
    assert length_score_ratio(words, target, RATIO) == pytest.approx(score)


@given(st.integers(0, 30_000), st.integers(1, 15_000))
def test_length_terms_are_bounded(words, target):
    assert 0 <= length_penalty_band(words, target, PAPER) <= 1
    assert 0 <= length_score_ratio(words, target, PAPER) <= 1


@given(st.integers(1, 15_000), st.integers(0, 30_000), st.integers(0, 5_000))
def test_further_from_the_target_is_never_better(target, words, step):
    further = words + step if words >= target else max(0, words - step)
    near, far = (
        length_penalty_band(words, target, PAPER),
        length_penalty_band(further, target, PAPER),
    )
    assert far >= near
    near, far = length_score_ratio(words, target, PAPER), length_score_ratio(further, target, PAPER)
    assert far <= near


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(2, 9))
def test_ratio_is_free_of_scale(words, target, factor):
    small = length_score_ratio(words, target, PAPER)
    assert length_score_ratio(words * factor, target * factor, PAPER) == pytest.approx(small)


@pytest.mark.parametrize("term", [length_penalty_band, length_score_ratio])
def test_target_below_one_is_an_error(term):
    with pytest.raises(ValueError, match="target must be at least 1"):
        term(10, 0, PAPER)


# repetition ------------------------------------------------------------------------------------


def test_repetition_by_hand():
    # 10 words, 7 four-grams: "a b c d", "b c d a", "c d a b", "d a b c", then three again
    assert ngram_repetition(tokenize("a b c d a b c d a b"), PAPER) == pytest.approx(
        0.7 * (3 / 7 - 0.08) + 0.3 * (3 / 7)
    )
    story = "a b c d a b c d a b"
    expected = 0.8 * (0.7 * (3 / 7 - 0.08) + 0.3 * 3 / 7)
    assert self_repetition(story, PAPER) == pytest.approx(expected)


def test_repetition_far_away_is_not_local():
    story = f"a b c d {distinct(100)} a b c d"
    num_grams = 108 - 3
    assert ngram_repetition(tokenize(story), PAPER) == pytest.approx(
        0.7 * max(0, 1 / num_grams - 0.08)
    )
    assert self_repetition(story, PAPER) == 0.0  # 1 % is within the free 8 %


def test_repeated_lines_by_hand():
    story = f"{distinct(8)}\n\n{distinct(8, 100)}\n  {distinct(8)}  \n"
    tokens = tokenize(story)
    expected = 0.8 * ngram_repetition(tokens, PAPER) + 0.4 / 3
    assert self_repetition(story, PAPER) == pytest.approx(expected)


@pytest.mark.parametrize("story", ["", "one two three", distinct(500)])
def test_no_repetition(story):
    assert self_repetition(story, PAPER) == 0.0


def test_windows_forget_what_is_far_but_not_copied_lines():
    windowed = RewardConfig(repetition_scope="windowed_mean")
    paragraph = distinct(400)
    story = f"{paragraph}\n{distinct(2000, 1000)}\n{paragraph}"
    assert max(windowed_repetition(story, PAPER)) == 0.0
    assert self_repetition(story, windowed) == pytest.approx(0.4 / 3)
    assert self_repetition(story, PAPER) > self_repetition(story, windowed)


def test_windowed_is_the_mean_over_windows():
    windowed = RewardConfig(repetition_scope="windowed_mean")
    story = distinct(1000) + " " + "a b c d " * 125  # 1,500 words: windows 0-1000 and 500-1500
    rates = windowed_repetition(story, PAPER)
    assert len(rates) == 2
    assert rates[0] == 0.0
    assert rates[1] == pytest.approx(
        ngram_repetition(tokenize(" ".join(story.split()[500:])), PAPER)
    )
    assert self_repetition(story, windowed) == pytest.approx(0.8 * rates[1] / 2)


def test_one_window_equals_the_whole_story():
    story = "a b c d e " * 50
    windowed = RewardConfig(repetition_scope="windowed_mean")
    assert self_repetition(story, windowed) == self_repetition(story, PAPER)


@given(st.lists(st.sampled_from(["a", "b", "c", "\n", "."]), max_size=300), st.booleans())
def test_repetition_is_bounded(words, windowed):
    config = RewardConfig(repetition_scope="windowed_mean" if windowed else "story")
    assert 0 <= self_repetition(" ".join(words), config) <= 1.5


@given(st.integers(1, 30), st.integers(1, 30))
def test_more_copies_are_never_less_repetition(copies, more):
    text = distinct(30) + " "
    few, many = (
        self_repetition(text * copies, PAPER),
        self_repetition(text * (copies + more), PAPER),
    )
    assert many >= few - 1e-12


# blank -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("story", "words", "penalty"),
    [
        (distinct(150), 150, 0.0),
        (distinct(149), 149, 1.0),
        ("", 0, 1.0),
        ("a" + " " * 8, 150, 0.0),  # 1 visible character of 9: 11 %
        ("a" + " " * 10, 150, 1.0),  # 9 %
        ("\u200b" * 99 + "a", 150, 1.0),
    ],
)
def test_blank_penalty(story, words, penalty):
    assert blank_penalty(story, words, PAPER) == penalty


# the whole -------------------------------------------------------------------------------------


def test_band_reward_by_hand():
    parts = compose_reward(Scored(0.55), distinct(1700), 4000, PAPER)
    assert parts.total == pytest.approx(0.55 - 0.8 * 0.5)
    assert (parts.quality, parts.length_score, parts.words) == (0.55, 0.5, 1700)
    assert (parts.self_repetition, parts.blank_penalty) == (0.0, 0.0)


def test_band_reward_with_every_term():
    story = "a b c d " * 25  # 100 words, T = 150: inside the band, blank
    repetition = self_repetition(story, PAPER)
    parts = compose_reward(Scored(0.3), story, 20, PAPER)
    assert parts.total == pytest.approx(0.3 - 1.5 * repetition - 1.0)
    assert parts.blank_penalty == 1.0
    assert parts.self_repetition == repetition > 0.5


@pytest.mark.parametrize(
    ("quality", "words", "total"),
    [
        (0.5, 100, 0.5),
        (0.5, 149, 0.5 * 0.5021 - 0.8 * 0.4979),  # ln 1.49 = .39878, g = .50204
        (0.5, 300, -0.8),
        (-0.5, 100, -0.5),
        (-0.5, 300, -1.3),
        (0.0, 100, 0.0),
    ],
)
def test_ratio_reward_by_hand(quality, words, total):
    parts = compose_reward(Scored(quality), distinct(words), 100, RATIO)
    assert parts.total == pytest.approx(total, abs=2e-4)


@pytest.mark.parametrize(("quality", "total"), [(1.08, 1.08), (50.0, 2.0), (-50.0, -2.0)])
def test_clipped(quality, total):
    assert compose_reward(Scored(quality), distinct(4000), 4000, PAPER).total == total


def test_weights_and_word_counter_come_from_the_configuration():
    config = RewardConfig(length_weight=0.0, blank_weight=0.0, repetition_weight=0.0)
    assert compose_reward(Scored(0.4), "no, no, no", 4000, config).total == 0.4
    counted = RewardConfig(word_counter="word_chars")
    assert compose_reward(Scored(0.4), "don't", 4000, counted).words == 2


@pytest.mark.parametrize("quality", [math.nan, math.inf, -math.inf])
def test_no_number_is_an_error(quality):
    with pytest.raises(ValueError, match="must be finite"):
        compose_reward(Scored(quality), "a", 100, PAPER)


stories = st.lists(st.sampled_from(["a", "dog", "ran", "\n", "&amp;", "!"]), max_size=120).map(
    " ".join
)


@given(st.floats(-1.59, 1.08), stories, st.integers(1, 12_000), st.sampled_from([PAPER, RATIO]))
def test_reward_is_finite_and_within_its_clip(quality, story, target, config):
    parts = compose_reward(Scored(quality), story, target, config)
    assert -2 <= parts.total <= 2
    assert 0 <= parts.length_score <= 1


@given(st.floats(-1, 1), st.floats(-1, 1), stories, st.sampled_from([PAPER, RATIO]))
def test_better_quality_is_never_punished(one, other, story, config):
    low, high = sorted((one, other))
    assert (
        compose_reward(Scored(low), story, 40, config).total
        <= compose_reward(Scored(high), story, 40, config).total + 1e-12
    )


@given(st.floats(-1, 1), st.integers(5, 300), st.integers(5, 300))
def test_ratio_reward_never_rises_away_from_the_target(quality, one, other):
    near, far = sorted((one, other), key=lambda words: abs(math.log(words / 100)))
    assume(near != far)
    reward = [compose_reward(Scored(quality), distinct(w), 100, RATIO).total for w in (near, far)]
    assert reward[0] >= reward[1] - 1e-12


@given(st.floats(-10, 10), st.floats(-10, 0), st.floats(0, 10))
def test_clamp(value, low, high):
    assert low <= clamp(value, low, high) <= high


# injection -------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [PAPER, RATIO])
def test_a_story_that_speaks_to_its_judge_pays_and_others_do_not(config):
    story = distinct(400)
    clean = compose_reward(Scored(0.5, flags=("total_mismatch",)), story, 400, config)
    flags = ("injection:judge_address", "injection:think_tag")
    speaking = compose_reward(Scored(0.5, flags=flags), story, 400, config)
    assert speaking.total == pytest.approx(clean.total - config.injection_penalty)
    assert (clean.injection, speaking.injection) == (0.0, 1.0)
    assert speaking.quality == 0.5


def test_the_penalty_for_injection_can_be_off_and_never_passes_the_lower_clip():
    flags = ("injection:think_tag",)
    free = compose_reward(
        Scored(0.5, flags=flags), distinct(400), 400, RewardConfig(injection_penalty=0)
    )
    assert free.total == compose_reward(Scored(0.5), distinct(400), 400, PAPER).total
    worst = compose_reward(Scored(-1.59, flags=flags), "", 400, PAPER)
    assert worst.total == PAPER.min_reward
