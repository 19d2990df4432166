"""How a measure changes from one bucket of lengths to the next: least squares, with an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .bootstrap import LEVEL, RESAMPLES, Interval, bootstrap


def bucket_slope(
    points: Mapping[str, Sequence[tuple[int, float]]],
    *,
    seed: int,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Slope of the regression of a measure on the bucket's number, a bucket.

    Every story is a point; prompts are resampled with all their points.

    Args:
        points: prompt -> (number of the bucket among all, value) of each of its stories.

    Returns:
        None where all points lie in one bucket.
    """
    if len({x for pairs in points.values() for x, _ in pairs}) < 2:
        return None
    # (U, 5) sums over each prompt's points: a resample's slope follows from them
    sums = np.array(
        [
            [
                len(pairs),
                sum(x for x, _ in pairs),
                sum(y for _, y in pairs),
                sum(x * x for x, _ in pairs),
                sum(x * y for x, y in pairs),
            ]
            for pairs in points.values()
        ],
        dtype=float,
    )

    def slope(index: np.ndarray) -> np.ndarray:
        n, x, y, xx, xy = np.moveaxis(sums[index].sum(-2), -1, 0)
        spread = n * xx - x * x
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(spread > 0, (n * xy - x * y) / spread, np.nan)

    return bootstrap(slope, len(sums), seed=seed, level=level, resamples=resamples)
