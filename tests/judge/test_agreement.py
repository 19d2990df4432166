"""Comparing two judges: hand-made cases for every number."""

from __future__ import annotations

import numpy as np
import pytest

from polaris_fast.judge.agreement import compare, ranks, spearman


def test_ranks_share_the_mean_over_ties():
    assert ranks(np.array([10.0, 30.0, 20.0, 20.0])).tolist() == [1.0, 4.0, 2.5, 2.5]


def test_spearman_sees_order_alone():
    x = np.array([0.1, 0.2, 0.5, 0.9])
    assert spearman(x, np.exp(5 * x)) == pytest.approx(1.0)
    assert spearman(x, -(x**3)) == pytest.approx(-1.0)
    # d = (0, 1, -1, 0): 1 - 6 * 2 / (4 * 15)
    assert spearman(x, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)
    assert spearman(x, np.ones(4)) is None


def test_a_constant_shift_is_harmless():
    old, groups = [0.1, 0.4, 0.2, 0.9, 0.5, 0.3], [0, 0, 0, 1, 1, 1]
    found = compare(old, [q + 0.25 for q in old], groups)
    assert found.mean_shift == pytest.approx(0.25)
    assert found.spearman == pytest.approx(1.0)
    assert found.spread_ratio == pytest.approx(1.0)
    assert found.flipped_pairs == found.flipped_signs == found.changed_best == 0.0
    assert found.worst_group is None


def test_orders_are_compared_inside_groups_only():
    old, new = [0.1, 0.2, 0.8, 0.9], [0.8, 0.9, 0.1, 0.2]  # the groups trade places
    found = compare(old, new, ["a", "a", "b", "b"])
    assert found.spearman < 0
    assert found.flipped_pairs == 0.0
    assert found.changed_best == 0.0


def test_flips_by_hand():
    # group a: 3 pairs of which (1,2) turns; group b: one tied pair, which had no order to lose
    found = compare([0.0, 0.5, 0.6, 0.3, 0.3], [0.0, 0.8, 0.4, 0.9, 0.1], [*"aaabb"])
    assert found.num_groups == 2
    assert found.flipped_pairs == pytest.approx(1 / 3)
    assert found.worst_group == "a"
    assert found.changed_best == pytest.approx(1 / 2)  # in b both were best, and one still is
    assert found.flipped_signs == 0.0  # against a mean of 0.4 the third story is even


def test_a_story_can_change_sides_of_its_groups_mean():
    found = compare([0.0, 0.6, 0.9], [0.0, 0.2, 0.9], [0, 0, 0])
    assert found.flipped_pairs == 0.0
    assert found.flipped_signs == pytest.approx(1 / 3)


def test_single_stories_count_for_the_correlation_alone():
    found = compare([0.1, 0.2, 0.3], [0.1, 0.3, 0.2], [0, 1, 2])
    assert found.num_stories == 3
    assert found.num_groups == 0
    assert found.flipped_pairs is found.flipped_signs is found.changed_best is None
    assert found.spread_ratio is None


def test_the_interval_holds_rho_and_narrows_with_more_groups():
    source = np.random.default_rng(1)

    def width(num_groups):
        old = source.normal(size=4 * num_groups)
        new = old + source.normal(size=len(old))
        found = compare(list(old), list(new), [i // 4 for i in range(len(old))])
        assert found.spearman_low <= found.spearman <= found.spearman_high
        return found.spearman_high - found.spearman_low

    assert width(80) < 0.7 * width(8)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="equal lengths"):
        compare([0.1], [0.1, 0.2], [0])
    with pytest.raises(ValueError, match="at least 1"):
        compare([], [], [])
