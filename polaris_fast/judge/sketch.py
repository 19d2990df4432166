"""Numbers of any count in bounded memory: quantiles within 1 %, and means, spreads, correlation."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

ACCURACY = 0.01
_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)


class QuantileSketch:
    """Counts values in buckets that grow by 2 % (the idea of DDSketch, arXiv 1908.10693)."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0

    def add(self, value: float) -> None:
        """Count one value, at least 0."""
        bucket = math.ceil(math.log(max(value, 1e-9), _GAMMA))
        self._buckets[bucket] += 1
        self.count += 1

    def quantile(self, share: float) -> float:
        """A value within 1 % of the smallest one that `share` of all do not exceed; nan if none."""
        rank = max(1, math.ceil(share * self.count))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return 2 * _GAMMA**bucket / (_GAMMA + 1)
        return math.nan


@dataclass(slots=True)
class Moments:
    """Mean and standard deviation as values come in (Welford)."""

    count: int = 0
    mean: float = 0.0
    _m2: float = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self._m2 += step * (value - self.mean)

    @property
    def std(self) -> float:
        """Of the sample (n - 1); nan for fewer than two values."""
        return math.sqrt(self._m2 / (self.count - 1)) if self.count > 1 else math.nan


@dataclass(slots=True)
class Correlation:
    """Pearson's r as pairs come in."""

    count: int = 0
    _mean_x: float = 0.0
    _mean_y: float = 0.0
    _xx: float = 0.0
    _yy: float = 0.0
    _xy: float = 0.0

    def add(self, x: float, y: float) -> None:
        """Count one pair."""
        self.count += 1
        step_x, step_y = x - self._mean_x, y - self._mean_y
        self._mean_x += step_x / self.count
        self._mean_y += step_y / self.count
        self._xx += step_x * (x - self._mean_x)
        self._yy += step_y * (y - self._mean_y)
        self._xy += step_x * (y - self._mean_y)

    @property
    def r(self) -> float:
        """In [-1, 1]; nan for fewer than three pairs or when one side does not vary."""
        if self.count < 3 or self._xx <= 0 or self._yy <= 0:
            return math.nan
        return self._xy / math.sqrt(self._xx * self._yy)


def percentile(ordered: list[float], percent: float) -> float:
    """The smallest of the sorted, non-empty values that `percent` of them do not exceed."""
    rank = -(-len(ordered) * percent // 100)  # ceiling
    return ordered[max(0, int(rank) - 1)]
