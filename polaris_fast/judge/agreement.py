"""How far two judges agree on the same stories, and whether it would change the training.

A group-relative method sees a judge only through the order and the spread inside each group, so a
constant shift is harmless and a flipped order is not.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_RESAMPLES = 1000
EVEN = 1e-9  # a score this near to its group's mean is on neither side
LEVEL = 0.95  # of the interval around Spearman's rho


@dataclass(frozen=True)
class Agreement:
    """What `compare` finds. Shares are in [0, 1]; None where nothing could be compared."""

    num_stories: int
    num_groups: int  # with at least two stories
    spearman: float | None  # rank correlation over all stories
    spearman_low: float | None  # 95 % interval, groups resampled
    spearman_high: float | None
    mean_shift: float  # mean of new - old
    spread_ratio: float | None  # standard deviation inside groups, new / old
    flipped_pairs: float | None  # share of pairs of a group, not tied before, whose order turned
    flipped_signs: float | None  # share of stories that changed sides of their group's mean
    changed_best: float | None  # share of groups with another best story
    worst_group: Hashable | None  # the group with the largest share of flipped pairs


def compare(old: Sequence[float], new: Sequence[float], groups: Sequence[Hashable]) -> Agreement:
    """Agreement of two judges over the same stories.

    Args:
        old: (R,) scores of the first judge, finite.
        new: (R,) scores of the second judge, finite, in the same order.
        groups: (R,) what each story competes within.

    Raises:
        ValueError: no story, or lengths that differ.
    """
    if not len(old) == len(new) == len(groups) or not len(old):
        raise ValueError(
            f"compare: want equal lengths of at least 1, got {len(old)}, {len(new)}, {len(groups)}"
        )
    before, after = np.asarray(old, dtype=float), np.asarray(new, dtype=float)
    members = _members(groups)
    pairs = {name: _flips(before[rows], after[rows]) for name, rows in members.items()}
    ordered = sum(total for _, total in pairs.values())
    centred = [(_centre(before[rows]), _centre(after[rows])) for rows in members.values()]
    low, high = _interval(before, after, groups)
    return Agreement(
        num_stories=len(before),
        num_groups=len(members),
        spearman=spearman(before, after),
        spearman_low=low,
        spearman_high=high,
        mean_shift=float((after - before).mean()),
        spread_ratio=_spread_ratio(centred),
        flipped_pairs=sum(turned for turned, _ in pairs.values()) / ordered if ordered else None,
        flipped_signs=_mean([float(x) for a, b in centred for x in _side(a) * _side(b) < 0]),
        changed_best=_mean([_other_best(before[rows], after[rows]) for rows in members.values()]),
        worst_group=max(
            (name for name, (turned, _) in pairs.items() if turned),
            key=lambda name: pairs[name][0] / pairs[name][1],
            default=None,
        ),
    )


def spearman(x: Floats, y: Floats) -> float | None:
    """Rank correlation, ties at their mean rank; None where either side is constant."""
    a, b = _centre(ranks(x)), _centre(ranks(y))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else None


def ranks(values: Floats) -> Floats:
    """Ranks from 1, equal values at the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: Floats = last - (counts - 1) / 2
    return mean_rank[place]


def _members(groups: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Row numbers of each group with at least two rows."""
    rows: dict[Hashable, list[int]] = {}
    for index, name in enumerate(groups):
        rows.setdefault(name, []).append(index)
    return {name: found for name, found in rows.items() if len(found) > 1}


def _flips(before: Floats, after: Floats) -> tuple[int, int]:
    """(pairs whose order turned, pairs that had an order)."""
    upper = np.triu_indices(len(before), k=1)
    was = np.sign(before[:, None] - before[None, :])[upper]
    now = np.sign(after[:, None] - after[None, :])[upper]
    return int((was * now < 0).sum()), int((was != 0).sum())


def _interval(
    x: Floats, y: Floats, groups: Sequence[Hashable]
) -> tuple[float, float] | tuple[None, None]:
    """Bootstrap percentiles of rho; whole groups are drawn, their stories are not independent."""
    names = sorted(set(groups), key=str)
    rows = [np.flatnonzero([g == name for g in groups]) for name in names]
    if len(rows) < 2:
        return None, None
    source = np.random.default_rng(0)
    found = []
    for _ in range(NUM_RESAMPLES):
        drawn = np.concatenate([rows[i] for i in source.integers(len(rows), size=len(rows))])
        rho = spearman(x[drawn], y[drawn])
        if rho is not None:
            found.append(rho)
    if not found:
        return None, None
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _spread_ratio(centred: Sequence[tuple[Floats, Floats]]) -> float | None:
    before = sum(float(a @ a) for a, _ in centred)
    after = sum(float(b @ b) for _, b in centred)
    return float(np.sqrt(after / before)) if before > 0 else None


def _other_best(before: Floats, after: Floats) -> float:
    """1.0 unless a story that was best before is best now."""
    best = after == after.max()
    return float(not best[before == before.max()].any())


def _centre(values: Floats) -> Floats:
    centred: Floats = values - values.mean()
    return centred


def _side(centred: Floats) -> Floats:
    """Above or below the mean; rounding is neither."""
    side: Floats = np.sign(np.where(np.abs(centred) < EVEN, 0.0, centred))
    return side


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
