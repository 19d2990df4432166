"""Intervals cover the truth as often as they say; slopes are those of least squares."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from polaris_fast.evaluate.bootstrap import bootstrap, bootstrap_mean
from polaris_fast.evaluate.slope import bucket_slope

TRIALS = 1500


def coverage(draw, truth: float, method: str, level: float, size: int) -> float:
    rng = np.random.default_rng(100)
    hits = 0
    for trial in range(TRIALS):
        values = draw(rng, size)
        mean = lambda index, values=values: values[index].mean(-1)
        interval = bootstrap(mean, size, seed=trial, level=level, resamples=400, method=method)
        hits += interval.low <= truth <= interval.high
    return hits / TRIALS


@pytest.mark.parametrize("method", ["bca", "percentile"])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_cover_a_normal_mean_at_the_nominal_rate(method, level):
    found = coverage(lambda rng, n: rng.normal(3.0, 2.0, n), 3.0, method, level, 120)
    error = math.sqrt(level * (1 - level) / TRIALS)
    assert abs(found - level) <= 3 * error


def test_bca_covers_a_skewed_mean_within_binomial_error():
    draw = lambda rng, n: rng.exponential(1.0, n)
    found = coverage(draw, 1.0, "bca", 0.9, 120)
    assert abs(found - 0.9) <= 3 * math.sqrt(0.9 * 0.1 / TRIALS)


def test_bca_leans_the_way_the_data_is_skewed():
    values = np.random.default_rng(3).exponential(1.0, 40)
    plain = bootstrap_mean(values, seed=0, method="percentile")
    bca = bootstrap_mean(values, seed=0)
    assert bca.low > plain.low and bca.high > plain.high
    mirrored = bootstrap_mean(-values, seed=0)
    assert mirrored.low == pytest.approx(-bca.high, abs=0.03)


def test_a_wide_sample_gives_the_textbook_interval():
    values = np.random.default_rng(1).normal(0, 1, 2000)
    interval = bootstrap_mean(values, seed=0)
    half = NormalDist().inv_cdf(0.975) * values.std(ddof=1) / math.sqrt(2000)
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.08)


def test_equal_seeds_draw_equal_intervals():
    values = np.arange(10.0)
    assert bootstrap_mean(values, seed=4) == bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values, seed=4) != bootstrap_mean(values, seed=5)


def test_too_little_to_say():
    one = bootstrap_mean(np.array([2.0]), seed=0)
    assert one.estimate == 2.0 and math.isnan(one.low) and math.isnan(one.high)
    same = bootstrap_mean(np.full(5, 2.0), seed=0)
    assert same.estimate == 2.0 and math.isnan(same.low) and math.isnan(same.high)
    with pytest.raises(ValueError, match="needs units"):
        bootstrap_mean(np.array([]), seed=0)


def test_the_slope_is_that_of_least_squares():
    rng = np.random.default_rng(5)
    points = {f"p{i}": [(b, 50 - 6 * b + rng.normal()) for b in range(3)] for i in range(30)}
    found = bucket_slope(points, seed=0)
    pairs = [pair for some in points.values() for pair in some]
    x, y = np.array(pairs, dtype=float).T
    assert found.estimate == pytest.approx(np.polyfit(x, y, 1)[0])
    assert found.low < -6 < found.high and found.high - found.low < 1
    assert found.num_prompts == 30


def test_prompts_are_resampled_whole():
    # two stories of a prompt are equal: twice the stories are no more evidence
    rng = np.random.default_rng(6)
    once = {f"p{i}": [(i % 3, float(rng.normal()))] for i in range(30)}
    twice = {uid: pairs * 2 for uid, pairs in once.items()}
    assert bucket_slope(twice, seed=0) == bucket_slope(once, seed=0)


def test_one_bucket_has_no_slope():
    assert bucket_slope({"a": [(0, 1.0)], "b": [(0, 2.0)]}, seed=0) is None
