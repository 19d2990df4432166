"""Has the judge changed? Scores of fixed stories against those of the first pass.

sigma, the noise of one judgement, is pooled over the repeated judgements of the first pass. With n
of them a story, a later judgement differs from the first mean by sigma * sqrt(1 + 1/n) if nothing
has changed; beyond `STORY_SIGMAS` of that (one story) or `MEAN_SIGMAS` (all together) there is an
alarm. There is one, too, when a broken story scores above the whole one by more than the noise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

STORY_SIGMAS = 4.0  # five stories a pass, some hundred passes a run
MEAN_SIGMAS = 3.5
ORDER_SIGMAS = 2.0
LEAST_SIGMA = 0.005  # half a point of the rubric: no judge is finer


@dataclass(frozen=True)
class DriftResult:
    """One pass compared. Drifts are in units of quality."""

    metrics: dict[str, float]
    alarms: list[str] = field(default_factory=list)


class DriftWatch:
    """Keeps the first pass and compares the later ones with it."""

    def __init__(self, best: str, *, least_sigma: float = 0.0) -> None:
        """
        Args:
            best: name of the story that must not be beaten.
            least_sigma: noise known from elsewhere; sigma is at least this.
        """
        self._best = best
        self._sigma = max(least_sigma, LEAST_SIGMA)
        self._baseline: dict[str, tuple[float, int]] = {}  # name -> (mean, samples)

    @property
    def has_baseline(self) -> bool:
        """Whether there was a pass with scores."""
        return bool(self._baseline)

    def compare(self, scores: Mapping[str, Sequence[float]]) -> DriftResult:
        """The first pass becomes the baseline; later ones are held against it.

        Args:
            scores: name -> the qualities that arrived, none where all judgements failed.
        """
        means = {name: statistics.fmean(found) for name, found in scores.items() if found}
        metrics = {f"quality/{name}": mean for name, mean in means.items()}
        metrics["missing"] = float(len(scores) - len(means))
        alarms: list[str] = []
        if self._baseline:
            drifts = {n: m - self._baseline[n][0] for n, m in means.items() if n in self._baseline}
            alarms += self._drifted(drifts, means)
            if drifts:
                metrics["drift"] = statistics.fmean(drifts.values())
                metrics["max_drift"] = max(abs(drift) for drift in drifts.values())
        elif means:
            self._sigma = max(self._sigma, _pooled_sigma(scores))
            self._baseline = {name: (mean, len(scores[name])) for name, mean in means.items()}
        alarms += self._misordered(means, scores)
        metrics |= {"sigma": self._sigma, "alarm": float(bool(alarms))}
        return DriftResult(metrics, alarms)

    def _drifted(self, drifts: Mapping[str, float], means: Mapping[str, float]) -> list[str]:
        alarms, variance = [], 0.0
        for name, drift in drifts.items():
            spread = self._sigma * math.sqrt(1 + 1 / self._baseline[name][1])
            variance += spread**2
            if abs(drift) > STORY_SIGMAS * spread:
                alarms.append(
                    f"the judge scores the {name} story {means[name]:.2f}, at first "
                    f"{means[name] - drift:.2f} (noise {self._sigma:.3f})"
                )
        if drifts and not alarms:
            mean, spread = statistics.fmean(drifts.values()), math.sqrt(variance) / len(drifts)
            if abs(mean) > MEAN_SIGMAS * spread:
                alarms.append(
                    f"the judge's scores have moved by {mean:+.3f} on average since the first pass "
                    f"(noise {self._sigma:.3f})"
                )
        return alarms

    def _misordered(
        self, means: Mapping[str, float], scores: Mapping[str, Sequence[float]]
    ) -> list[str]:
        if self._best not in means:
            return []
        best, alarms = means[self._best], []
        for name, mean in means.items():
            noise = math.sqrt(1 / len(scores[name]) + 1 / len(scores[self._best]))
            if mean - best > ORDER_SIGMAS * self._sigma * noise:
                alarms.append(
                    f"the judge puts the {name} story ({mean:.2f}) above the {self._best} one "
                    f"({best:.2f})"
                )
        return alarms


def _pooled_sigma(scores: Mapping[str, Sequence[float]]) -> float:
    """Unbiased over all stories; 0 when none was judged twice."""
    freedom = sum(len(found) - 1 for found in scores.values() if found)
    if freedom < 1:
        return 0.0
    squares = sum(statistics.variance(s) * (len(s) - 1) for s in scores.values() if len(s) > 1)
    return math.sqrt(squares / freedom)
