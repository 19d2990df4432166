"""Alarms for reward hacking, while there is still time to stop: see the recipe's signs.

    repetition         self-repetition rose above its start: copied paragraphs, loops
    judge-addressed    stories speak to the judge, or fake the end of what it is to read
    reference overlap  stories quote the human story of their prompt
    group collapse     the rollouts of a group have become one story
    metaphor piles     figures of speech are far denser than at the start
    falling length     stories shrink against their targets while reward or quality hold

An alarm sounds when a sign has been there for `alarms.patience` steps in a row, and again only
after it was gone. All of it is a function of the metrics so far, so a resumed run goes on alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .config import AlarmConfig

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Alarm:
    """One sign that has lasted; `text` says what was seen and against what."""

    name: str
    text: str


class AlarmWatch:
    """Looks at the metrics of every step."""

    def __init__(self, config: AlarmConfig, history: Iterable[Metrics] = ()) -> None:
        """
        Args:
            history: metrics of the steps before a resume; their alarms have sounded already.
        """
        self.config = config
        self._baseline: list[Metrics] = []
        self._lasting = dict.fromkeys(_SIGNS, 0)
        for metrics in history:
            self.look(metrics)

    def look(self, metrics: Metrics) -> list[Alarm]:
        """The alarms that sound at this step; none before `alarms.baseline_steps` are over."""
        if len(self._baseline) < self.config.baseline_steps:
            self._baseline.append(metrics)
            return []
        found = []
        for name, sign in _SIGNS.items():
            text = sign(metrics, self._baseline, self.config)
            self._lasting[name] = self._lasting[name] + 1 if text is not None else 0
            if text is not None and self._lasting[name] == self.config.patience:
                found.append(Alarm(name, f"{name}: {text}, for {self.config.patience} steps now"))
        return found


Sign = Callable[[Metrics, Sequence[Metrics], AlarmConfig], str | None]


def _repetition(now: Metrics, start: Sequence[Metrics], config: AlarmConfig) -> str | None:
    value, before = now.get("reward/self_repetition"), _mean(start, "reward/self_repetition")
    if value is None or before is None or value - before <= config.max_repetition_rise:
        return None
    return f"self-repetition is {value:.2f}, at the start it was {before:.2f}"


def _judge_addressed(now: Metrics, start: Sequence[Metrics], config: AlarmConfig) -> str | None:
    return _share(now, "reward/injection", config.max_injection, "of the stories address the judge")


def _reference_overlap(now: Metrics, start: Sequence[Metrics], config: AlarmConfig) -> str | None:
    key, limit = "signs/reference_overlap", config.max_reference_overlap
    return _share(now, key, limit, "of the stories' 8-grams are the human story's")


def _group_collapse(now: Metrics, start: Sequence[Metrics], config: AlarmConfig) -> str | None:
    key, limit = "signs/group_similarity", config.max_group_similarity
    return _share(now, key, limit, "of two rollouts' 4-grams are the same")


def _metaphor_piles(now: Metrics, start: Sequence[Metrics], config: AlarmConfig) -> str | None:
    key = "signs/figurative_density"
    value, before = now.get(key), _mean(start, key)
    if value is None or before is None or value - before <= config.max_figurative_rise:
        return None
    return f"{value:.1f} figures of speech per 1,000 words, at the start {before:.1f}"


def _falling_length(now: Metrics, start: Sequence[Metrics], config: AlarmConfig) -> str | None:
    ratio, before = now.get("length/ratio"), _mean(start, "length/ratio")
    if ratio is None or before is None:
        return None
    # Stories that were too long shrink towards the target: that is learning.
    if ratio >= min(before, 1.0) * config.min_length_share:
        return None
    for key, name in (("reward", "reward"), ("reward/quality", "quality")):
        value, value_before = now.get(key), _mean(start, key)
        if value is not None and value_before is not None and value >= value_before:
            return (
                f"words per word asked for fell from {before:.2f} to {ratio:.2f} while the {name} "
                f"went from {value_before:.2f} to {value:.2f}"
            )
    return None


_SIGNS: dict[str, Sign] = {
    "repetition": _repetition,
    "judge-addressed text": _judge_addressed,
    "reference overlap": _reference_overlap,
    "group collapse": _group_collapse,
    "metaphor piles": _metaphor_piles,
    "falling length": _falling_length,
}


def _share(now: Metrics, key: str, limit: float, words: str) -> str | None:
    value = now.get(key)
    return None if value is None or value <= limit else f"{100 * value:.0f} % {words}"


def _mean(rows: Sequence[Metrics], key: str) -> float | None:
    values = [row[key] for row in rows if isinstance(row.get(key), int | float)]
    return statistics.fmean(values) if values else None
