"""What a judge's scores are worth: noise and reliability per dimension, from repeated judgements.

    found = measure("judge", judgements, groups)   # judgements[s]: the Scored samples of story s
    found.quality.sigma_judge.value                # the noise of one judgement, in units of quality
    found.quality.samples_for(0.8)                 # judgements a story for a reliability of 0.8

The stories stand for what will be judged: take a run's own, or some of the same kind. Judgements
of one text are only independent when each was asked for anew (`JudgeJob.first_sample`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..types import Scored, UserError
from . import rubric
from .agreement import Agreement, compare
from .variance import Components, variance_components


@dataclass(frozen=True)
class JudgeNoise:
    """One judge's variance components."""

    judge: str
    mean_quality: float
    quality: Components
    dimensions: dict[str, Components]  # points of the rubric; empty where the judge gives none

    def as_dict(self, reliability: float) -> dict[str, Any]:
        """For JSON; `samples` reach `reliability`."""
        parts = {"quality": self.quality} | self.dimensions
        return {
            "judge": self.judge,
            "mean_quality": self.mean_quality,
            "scores": {name: _components(part, reliability) for name, part in parts.items()},
        }


def measure(
    judge: str, judgements: Sequence[Sequence[Scored]], groups: Sequence[Hashable]
) -> JudgeNoise:
    """Variance components of the quality and of every dimension.

    Args:
        judgements: for each story its samples; fewer where some failed.
        groups: the prompt of each story. Without two stories of one prompt all are one group.

    Raises:
        UserError: too few judgements arrived to tell stories and noise apart.
    """
    together = groups if len(set(groups)) < len(groups) else [0] * len(groups)
    qualities = [[scored.quality for scored in samples] for samples in judgements]
    arrived = [quality for samples in qualities for quality in samples]
    try:
        quality = variance_components(qualities, together)
    except ValueError as error:
        raise UserError(
            f"calibrate: {judge}: {len(arrived)} judgements of {len(judgements)} stories are too "
            "few; want at least two stories (of one prompt, if any share one) and two judgements "
            "of a story"
        ) from error
    scored = [one for samples in judgements for one in samples]
    names = [name for name in rubric.DIMENSIONS if all(name in one.dimensions for one in scored)]
    return JudgeNoise(
        judge=judge,
        mean_quality=sum(arrived) / len(arrived),
        quality=quality,
        dimensions={
            name: variance_components(
                [[one.dimensions[name] for one in samples] for samples in judgements], together
            )
            for name in names
        },
    )


def agreement_of(
    first: Sequence[Sequence[Scored]],
    second: Sequence[Sequence[Scored]],
    groups: Sequence[Hashable],
) -> Agreement | None:
    """How two judges' mean scores agree, over the stories that both scored; None without any."""
    both = [
        (_mean(a), _mean(b), group)
        for a, b, group in zip(first, second, groups, strict=True)
        if a and b
    ]
    if not both:
        return None
    return compare([a for a, _, _ in both], [b for _, b, _ in both], [g for _, _, g in both])


def _mean(samples: Sequence[Scored]) -> float:
    return sum(scored.quality for scored in samples) / len(samples)


def _components(part: Components, reliability: float) -> dict[str, Any]:
    return {
        "num_stories": part.num_stories,
        "sigma_story": asdict(part.sigma_story),
        "sigma_judge": asdict(part.sigma_judge),
        "reliability": asdict(part.reliability()),
        "samples": part.samples_for(reliability),
    }
