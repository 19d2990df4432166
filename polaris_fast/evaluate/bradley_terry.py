"""Strengths from pairwise results: Bradley-Terry (1952) by Hunter's MM steps (2004), as Elo.

M models · B resamples. A tie is half a win for each. Every pair that met gets one tie more, so that
a model that won every time has a finite strength.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .bootstrap import LEVEL, RESAMPLES, Interval, bootstrap

ANCHOR = 1000.0  # Elo of the first model
POINTS = 400.0 / math.log(10.0)  # Elo points a unit of log-strength
_STEPS, _TOLERANCE = 1000, 1e-9


def fit_strengths(wins: np.ndarray) -> np.ndarray:
    """Log-strengths, (B, M), the first model's 0.

    Args:
        wins: (B, M, M) float, wins of row over column; ties are half in either.
    """
    met = (wins + wins.swapaxes(-1, -2)) > 0
    wins = wins + 0.5 * met
    games, won = wins + wins.swapaxes(-1, -2), wins.sum(-1)
    strength = np.ones(won.shape)
    for _ in range(_STEPS):
        shares = games / (strength[:, :, None] + strength[:, None, :])
        fresh = won / np.maximum(shares.sum(-1), 1e-300)
        fresh = np.where(won > 0, fresh, 1.0)  # a model that met nobody
        fresh /= np.exp(np.log(fresh).mean(-1, keepdims=True))
        moved = np.abs(np.log(fresh / strength)).max()
        strength = fresh
        if moved < _TOLERANCE:
            break
    logs = np.log(strength)
    return logs - logs[:, :1]


def elo_ratings(
    results: Sequence[np.ndarray], *, seed: int, level: float = LEVEL, resamples: int = RESAMPLES
) -> list[Interval]:
    """Elo of every model with the first at 1000, intervals over prompts.

    Args:
        results: for each prompt its (M, M) wins of row over column.
    """
    wins = np.stack(results)  # (U, M, M)

    def rating(model: int, index: np.ndarray) -> np.ndarray:
        return ANCHOR + POINTS * fit_strengths(wins[index].sum(1))[:, model]

    return [
        bootstrap(
            lambda index, model=model: rating(model, index),  # type: ignore[misc]
            len(wins),
            seed=seed,
            level=level,
            resamples=resamples,
            method="percentile",
        )
        for model in range(wins.shape[-1])
    ]
