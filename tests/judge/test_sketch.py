"""Quantiles, spreads and correlations in bounded memory agree with the plain computation."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_fast.judge.sketch import Correlation, Moments, QuantileSketch, percentile


@given(st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=300), st.sampled_from([0.5, 0.95, 0.99]))
def test_quantiles_are_within_one_percent(values, share) -> None:
    sketch = QuantileSketch()
    for value in values:
        sketch.add(value)
    exact = percentile(sorted(values), 100 * share)
    assert sketch.quantile(share) == pytest.approx(exact, rel=0.0101)


def test_memory_does_not_grow_with_the_count() -> None:
    rng, sketch = random.Random(0), QuantileSketch()
    sizes = []
    for _ in range(2):
        for _ in range(20_000):
            sketch.add(rng.lognormvariate(0, 1))
        sizes.append(len(sketch._buckets))
    assert sizes[1] < sizes[0] + 60 < 700
    assert sketch.count == 40_000


def test_nothing_counted_is_nan() -> None:
    assert math.isnan(QuantileSketch().quantile(0.5))
    assert math.isnan(Moments().std)
    assert math.isnan(Correlation().r)


def test_moments_and_correlation() -> None:
    rng = random.Random(3)
    pairs = [(x := rng.gauss(1e6, 1), 0.3 * x + rng.gauss(0, 1)) for _ in range(500)]
    moments, correlation = Moments(), Correlation()
    for x, y in pairs:
        moments.add(x)
        correlation.add(x, y)
    xs, ys = zip(*pairs, strict=True)
    assert moments.mean == pytest.approx(statistics.fmean(xs), rel=1e-12)
    assert moments.std == pytest.approx(statistics.stdev(xs), rel=1e-6)
    assert correlation.r == pytest.approx(statistics.correlation(xs, ys), rel=1e-6)


def test_no_correlation_with_a_constant() -> None:
    correlation = Correlation()
    for y in range(5):
        correlation.add(1.0, y)
    assert math.isnan(correlation.r)
