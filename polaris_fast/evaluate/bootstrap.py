"""Bootstrap intervals over prompts: percentile and BCa (Efron 1987; Efron and Tibshirani, ch. 14).

Prompts are drawn with replacement, with all their stories: stories of one prompt are no independent
evidence. U units (prompts) · B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

Method = Literal["bca", "percentile"]
# (B, U) indices of units -> (B,) values; NaN where a resample gives none.
Statistic = Callable[[np.ndarray], np.ndarray]

RESAMPLES = 2000
LEVEL = 0.95
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """An estimate with its bounds; NaN bounds where there are too few prompts to say, or where all
    have one value: an interval without width would claim to be certain."""

    estimate: float
    low: float
    high: float
    num_prompts: int


def bootstrap(
    statistic: Statistic,
    num_units: int,
    *,
    seed: int,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    method: Method = "bca",
) -> Interval:
    """The statistic of all units with its interval.

    Args:
        statistic: of resampled units, see `Statistic`.
        num_units: U, at least 1.
        seed: equal seeds draw equal resamples.
        level: nominal coverage, in (0, 1).
        method: `bca` corrects for bias and skewness, `percentile` does not.

    Raises:
        ValueError: no units, or a level outside (0, 1).
    """
    if num_units < 1 or not 0 < level < 1:
        raise ValueError(f"bootstrap: needs units and 0 < level < 1, got {num_units} and {level}")
    everyone = np.arange(num_units)[None]
    estimate = float(statistic(everyone)[0])
    if num_units < 2:
        return Interval(estimate, math.nan, math.nan, num_units)
    drawn = np.random.default_rng(seed).integers(num_units, size=(resamples, num_units))
    values = statistic(drawn)
    values = np.sort(values[np.isfinite(values)])
    if not len(values) or np.isclose(values[0], values[-1], rtol=1e-9, atol=1e-12):
        return Interval(estimate, math.nan, math.nan, num_units)
    tails = ((1 - level) / 2, (1 + level) / 2)
    if method == "bca":
        tails = _bca_tails(statistic, num_units, estimate, values, tails)
    low, high = np.quantile(values, tails)
    return Interval(estimate, float(low), float(high), num_units)


def bootstrap_mean(
    values: np.ndarray, *, seed: int, level: float = LEVEL, method: Method = "bca"
) -> Interval:
    """`bootstrap` of the mean of (U,) values, one a prompt."""
    return bootstrap(
        lambda index: values[index].mean(-1), len(values), seed=seed, level=level, method=method
    )


def _bca_tails(
    statistic: Statistic,
    num_units: int,
    estimate: float,
    values: np.ndarray,
    tails: tuple[float, float],
) -> tuple[float, float]:
    """The percentiles that stand for `tails` under bias z0 and acceleration a."""
    below = (np.sum(values < estimate) + 0.5 * np.sum(values == estimate)) / len(values)
    edge = 0.5 / len(values)
    z0 = _NORMAL.inv_cdf(float(np.clip(below, edge, 1 - edge)))
    rest = np.arange(num_units - 1)[None] + (
        np.arange(num_units)[:, None] <= np.arange(num_units - 1)
    )
    left_out = statistic(rest)
    left_out = left_out[np.isfinite(left_out)]
    deviation = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    spread = float(np.sum(deviation**2))
    acceleration = float(np.sum(deviation**3)) / (6 * spread**1.5) if spread > 0 else 0.0

    def moved(tail: float) -> float:
        z = z0 + _NORMAL.inv_cdf(tail)
        return _NORMAL.cdf(z0 + z / (1 - acceleration * z))

    return moved(tails[0]), moved(tails[1])
