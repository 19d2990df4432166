"""Strengths from pairwise results: Bradley-Terry (1952) by Hunter's MM steps (2004), as Elo.

M models · B resamples. A tie is half a win for each. Every pair that met gets one tie more, so that
a model that won every time has a finite strength.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .bootstrap import LEVEL, RESAMPLES, Interval, bootstrap

ANCHOR = 1000.0  # Elo of the first model
POINTS = 400.0 / math.log(10.0)  # Elo points a unit of log-strength
_STEPS, _TOLERANCE = 1000, 1e-9


def fit_strengths(wins: np.ndarray, anchor: int = 0) -> np.ndarray:
    """Log-strengths, (B, M), the anchor's 0; NaN for a model that met nobody.

    Args:
        wins: (B, M, M) float, wins of row over column; ties are half in either.
        anchor: the model whose strength is fixed.
    """
    met = (wins + wins.swapaxes(-1, -2)) > 0
    wins = wins + 0.5 * met
    games, won = wins + wins.swapaxes(-1, -2), wins.sum(-1)
    strength = np.ones(won.shape)
    for _ in range(_STEPS):
        shares = games / (strength[:, :, None] + strength[:, None, :])
        fresh = won / np.maximum(shares.sum(-1), 1e-300)
        fresh = np.where(won > 0, fresh, 1.0)  # a model that met nobody stays out of it
        fresh /= np.exp(np.log(fresh).mean(-1, keepdims=True))
        moved = np.abs(np.log(fresh / strength)).max()
        strength = fresh
        if moved < _TOLERANCE:
            break
    logs = np.where(won > 0, np.log(strength), np.nan)
    return logs - logs[:, anchor, None]


def elo_ratings(
    results: Sequence[np.ndarray], *, seed: int, level: float = LEVEL, resamples: int = RESAMPLES
) -> list[Interval]:
    """Elo of every model with the first that met another at 1000, intervals over prompts.

    Args:
        results: for each prompt its (M, M) wins of row over column.

    Returns:
        For each model, with the number of prompts at which it met another: NaN without any.
    """
    wins = np.stack(results)  # (U, M, M)
    num_prompts = ((wins + wins.swapaxes(-1, -2)).sum(-1) > 0).sum(0)
    anchor = int(np.flatnonzero(num_prompts)[0])

    def rating(model: int, index: np.ndarray) -> np.ndarray:
        return ANCHOR + POINTS * fit_strengths(wins[index].sum(1), anchor)[:, model]

    found = [
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
    return [replace(one, num_prompts=int(n)) for one, n in zip(found, num_prompts, strict=True)]
