"""Wilson's interval (1927) of a share: it has a width where none or all of the cases are hits."""

from __future__ import annotations

import math
from statistics import NormalDist

from .bootstrap import LEVEL, Interval


def wilson_interval(hits: int, cases: int, *, level: float = LEVEL) -> Interval:
    """hits / cases with its bounds.

    Args:
        hits: 0 to `cases`.
        cases: independent ones, at least 1.
        level: nominal coverage, in (0, 1).

    Raises:
        ValueError: no cases, or more hits than cases.
    """
    if not 0 <= hits <= cases or cases < 1:
        raise ValueError(f"wilson_interval: needs 0 <= hits <= cases, got {hits} of {cases}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = hits / cases, z * z / cases
    middle = (share + weight / 2) / (1 + weight)
    reach = z * math.sqrt(share * (1 - share) / cases + weight / (4 * cases)) / (1 + weight)
    return Interval(share, max(0.0, middle - reach), min(1.0, middle + reach), cases)
