"""The length formulas of docs/evaluation.md on hand-computed cases."""

from __future__ import annotations

import math

import pytest

from polaris_fast.evaluate.length import length_measures, length_score


@pytest.mark.parametrize(
    ("words", "target", "score"),
    [
        (1000, 1000, 100.0),
        (2500, 1000, 50.0),  # 1 - 1.5 / 3
        (4000, 1000, 0.0),  # four times as long: 1 - 3 / 3
        (9000, 1000, 0.0),
        (500, 1000, 50.0),  # 1 - 1 / 2
        (800, 1000, 87.5),  # 1 - .25 / 2
        (1000, 3000, 0.0),  # a third: 1 - 2 / 2
        (100, 3000, 0.0),
        (0, 1000, 0.0),
        (8640, 12000, 100 * (1 - (12000 / 8640 - 1) / 2)),  # the paper's .72 at 12K words: 80.6
    ],
)
def test_s_l_is_longbench_writes(words, target, score):
    assert length_score(words, target) == pytest.approx(score)


@pytest.mark.parametrize(
    ("words", "target", "ratio", "log", "within_10", "within_20"),
    [
        (100, 100, 1.0, 0.0, 1, 1),
        (110, 100, 1.1, math.log(1.1), 1, 1),
        (111, 100, 1.11, math.log(1.11), 0, 1),
        (80, 100, 0.8, math.log(1.25), 0, 1),
        (79, 100, 0.79, math.log(100 / 79), 0, 0),
        (200, 100, 2.0, math.log(2), 0, 0),
        (50, 100, 0.5, math.log(2), 0, 0),  # half and double are equally far in |ln|
        (0, 100, 0.0, math.log(100), 0, 0),  # counted as one word
    ],
)
def test_ratio_log_and_shares(words, target, ratio, log, within_10, within_20):
    found = length_measures(words, target)
    assert found["words"] == words
    assert found["length_ratio"] == pytest.approx(ratio)
    assert found["abs_log_ratio"] == pytest.approx(log)
    assert (found["within_10"], found["within_20"]) == (within_10, within_20)


def test_a_target_below_one_word_is_refused():
    with pytest.raises(ValueError, match="target must be at least 1 word, got 0"):
        length_measures(10, 0)
