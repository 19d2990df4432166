"""How much of a score is the story and how much is the judge: variance components.

    score of sample j of story i in group g = mu_g + story_i + noise_ij
    var(story) = sigma_g^2, var(noise) = sigma_j^2

The one-way random-effects ANOVA estimators (nested: stories within groups), unbiased for any number
of samples a story; with one group it is the plain one-way layout. A group is a prompt: what a
group-relative method sees is the spread among stories of one prompt.

    reliability of the mean of k samples = sigma_g^2 / (sigma_g^2 + sigma_j^2 / k)

Intervals come from a bootstrap over stories within their groups, whose shrinkage of the sum of
squares, (S_g - 1) / S_g, is undone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95  # of all intervals
NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Components:
    """Variances of one score."""

    num_stories: int
    story_variance: float  # sigma_g^2, unbiased: below 0 where there is none to be seen
    judge_variance: float  # sigma_j^2
    draws: Floats  # (B, 2) the same two of the bootstrap's draws

    @property
    def sigma_story(self) -> Estimate:
        """sigma_g, 0 where the variance came out negative."""
        return self._estimate(np.sqrt(np.maximum(self._all()[:, 0], 0.0)))

    @property
    def sigma_judge(self) -> Estimate:
        """sigma_j."""
        return self._estimate(np.sqrt(self._all()[:, 1]))

    def reliability(self, num_samples: int = 1) -> Estimate:
        """Share of the variance of a mean of k samples that is the stories', in [0, 1].

        1 where the judge never differs from itself; 0 where the stories do not differ.
        """
        pairs = self._all()
        story, noise = np.maximum(pairs[:, 0], 0.0), pairs[:, 1] / num_samples
        total = story + noise
        share = np.divide(story, total, out=np.zeros_like(total), where=total > 0)
        return self._estimate(share)

    def samples_for(self, reliability: float) -> int | None:
        """The least k whose reliability reaches the wanted one, below 1; None: no k does."""
        if self.judge_variance <= 0:
            return 1
        if self.story_variance <= 0:
            return None
        ratio = self.judge_variance / self.story_variance
        return max(1, math.ceil(ratio * reliability / (1 - reliability) - 1e-9))

    def _all(self) -> Floats:
        """The estimate itself in the first row, the draws below."""
        return np.vstack([[self.story_variance, self.judge_variance], self.draws])

    def _estimate(self, values: Floats) -> Estimate:
        low, high = np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(float(values[0]), float(low), float(high))


def variance_components(
    scores: Sequence[Sequence[float]],
    groups: Sequence[Hashable] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Components:
    """Estimate sigma_g^2 and sigma_j^2.

    Args:
        scores: for each story its samples, finite; stories without any are left out.
        groups: (S,) the prompt of each story; None: one group. Groups of one story tell about the
            judge alone.

    Raises:
        ValueError: no group with two stories, or no story with two samples.
    """
    names = groups if groups is not None else [0] * len(scores)
    kept = [(list(s), g) for s, g in zip(scores, names, strict=True) if len(s)]
    layout = _Layout.of([s for s, _ in kept], [g for _, g in kept])
    if layout.group_freedom < 1 or layout.judge_freedom < 1:
        raise ValueError(
            "variance_components: want at least two stories of a group and one story with two "
            f"samples, got {len(kept)} stories with {[len(s) for s, _ in kept][:10]} samples"
        )
    story, judge = layout.estimate(np.ones((1, len(kept))), scale_groups=False)
    draws = layout.estimate(layout.resampled(num_resamples, seed), scale_groups=True)
    return Components(len(kept), float(story[0]), float(judge[0]), np.stack(draws, axis=1))


@dataclass(frozen=True)
class _Layout:
    """What the estimators need of the data. S stories, P groups, B weightings."""

    counts: Floats  # (S,) samples
    means: Floats  # (S,)
    within: Floats  # (S,) sum of squares about the story's mean
    members: Floats  # (P, S) 1 where the story belongs to the group

    @classmethod
    def of(cls, scores: Sequence[Sequence[float]], groups: Sequence[Hashable]) -> _Layout:
        arrays = [np.asarray(samples, dtype=np.float64) for samples in scores]
        names = list(dict.fromkeys(groups))
        return cls(
            counts=np.array([len(a) for a in arrays], dtype=np.float64),
            means=np.array([a.mean() for a in arrays]),
            within=np.array([((a - a.mean()) ** 2).sum() for a in arrays]),
            members=np.array([[float(g == name) for g in groups] for name in names]),
        )

    @property
    def sizes(self) -> Floats:
        """(P,) stories of each group."""
        sizes: Floats = self.members.sum(axis=1)
        return sizes

    @property
    def group_freedom(self) -> float:
        """Degrees of freedom between the stories of a group."""
        return float((self.sizes - 1).sum()) if len(self.members) else 0.0

    @property
    def judge_freedom(self) -> float:
        """Degrees of freedom between the samples of a story."""
        return float((self.counts - 1).sum())

    def resampled(self, num: int, seed: int) -> Floats:
        """(B, S) how often each story is drawn when its group is drawn anew."""
        source = np.random.default_rng(seed)
        weights = np.zeros((num, len(self.counts)))
        for member, size in zip(self.members, self.sizes, strict=True):
            weights[:, member > 0] = source.multinomial(
                int(size), np.full(int(size), 1 / size), num
            )
        return weights

    def estimate(self, weights: Floats, *, scale_groups: bool) -> tuple[Floats, Floats]:
        """(story variance, judge variance), each (B,), of weighted stories."""
        freedom = weights @ (self.counts - 1)
        judge = np.divide(
            weights @ self.within, freedom, out=np.zeros_like(freedom), where=freedom > 0
        )
        samples = (weights * self.counts) @ self.members.T  # (B, P)
        totals = (weights * self.counts * self.means) @ self.members.T
        squares = (weights * self.counts * self.means**2) @ self.members.T
        between = squares - totals**2 / samples  # (B, P)
        if scale_groups:
            between = between * self.sizes / np.maximum(self.sizes - 1, 1)
        group_counts = self.members @ self.counts
        coefficient = group_counts.sum() - ((self.members @ self.counts**2) / group_counts).sum()
        story = (between.sum(axis=1) - self.group_freedom * judge) / coefficient
        return story, judge
