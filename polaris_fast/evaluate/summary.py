"""From stories with their measures to means a bucket: intervals, slopes, and the gain over a base.

Every prompt counts alike, whatever number of its stories has a value; stories without one (a failed
judgement is no number) are left out and counted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bootstrap import Interval, bootstrap_mean
from .buckets import Buckets
from .measures import MEASURES
from .slope import bucket_slope
from .writing import Written


@dataclass(frozen=True)
class Measured:
    """A story with its values, by the keys of `MEASURES`; what is not known is absent."""

    written: Written
    values: dict[str, float]


@dataclass(frozen=True)
class MeasureSummary:
    """One measure of one model."""

    all: Interval
    buckets: dict[str, Interval]
    slope: Interval | None  # a bucket; None: there is one bucket
    gain: Interval | None  # over the first model, prompt by prompt; None: it is the first


def summarize_models(
    stories: Mapping[str, Sequence[Measured]], buckets: Buckets, *, seed: int
) -> dict[str, dict[str, MeasureSummary]]:
    """Model -> measure -> its numbers.

    Args:
        stories: by model; the first one is the base of `gain`.
    """
    base = next(iter(stories))
    labels = buckets.labels([m.written.target for found in stories.values() for m in found])
    base_means = {key: _prompt_means(stories[base], key) for key in MEASURES}
    return {
        name: {
            key: _summarize(
                found, key, buckets, labels, None if name == base else base_means[key], seed
            )
            for key in MEASURES
            if any(key in one.values for one in found)
        }
        for name, found in stories.items()
    }


def to_json(summary: MeasureSummary) -> dict[str, Any]:
    """JSON values; bounds that are not known are null."""
    return {
        "all": interval_json(summary.all),
        "buckets": {label: interval_json(one) for label, one in summary.buckets.items()},
        "slope": summary.slope and interval_json(summary.slope),
        "gain": summary.gain and interval_json(summary.gain),
    }


def interval_json(interval: Interval) -> dict[str, Any]:
    """estimate, low, high, num_prompts."""
    bounds = {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
    known = {name: value if math.isfinite(value) else None for name, value in bounds.items()}
    return {**known, "num_prompts": interval.num_prompts}


def _summarize(
    found: Sequence[Measured],
    key: str,
    buckets: Buckets,
    labels: Sequence[str],
    base: Mapping[str, float] | None,
    seed: int,
) -> MeasureSummary:
    by_bucket: dict[str, list[Measured]] = {label: [] for label in labels}
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for one in found:
        if key in one.values:
            target = one.written.target
            by_bucket[buckets.label(target)].append(one)
            points[one.written.uid].append((buckets.number(target), one.values[key]))
    means = _prompt_means(found, key)
    return MeasureSummary(
        all=_mean(means, seed),
        buckets={
            label: _mean(_prompt_means(some, key), seed)
            for label, some in by_bucket.items()
            if some
        },
        slope=bucket_slope(points, seed=seed),
        gain=None if base is None else _gain(means, base, seed),
    )


def _gain(means: Mapping[str, float], base: Mapping[str, float], seed: int) -> Interval | None:
    both = {uid: value - base[uid] for uid, value in means.items() if uid in base}
    return _mean(both, seed) if both else None


def _mean(means: Mapping[str, float], seed: int) -> Interval:
    return bootstrap_mean(np.array(list(means.values())), seed=seed)


def _prompt_means(found: Sequence[Measured], key: str) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for one in found:
        if key in one.values:
            values[one.written.uid].append(one.values[key])
    return {uid: sum(some) / len(some) for uid, some in values.items()}
