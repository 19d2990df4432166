"""The end of each run in numbers, and the settings in which the runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from ..drawing import number
from ..folder import RunFolder
from ..prompts import asked_prompts, prompt_values, two_standard_errors
from ..verdict import MEASURES, WINDOW
from .runs import Named

# Where a run was written and under which name tells nothing about what it did.
_NO_DIFFERENCE = frozenset({"output_dir", "run_name"})


@dataclass(frozen=True)
class Cell:
    """A run's number; `best` when it beats every other run's beyond two standard errors."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Measured:
    """A line of the table, one cell a run."""

    label: str
    hint: str
    cells: list[Cell]


@dataclass(frozen=True)
class _Last:
    """A metric at the end of training."""

    key: str
    label: str
    better: int = 0  # 1: more is better, -1: less is better, 0: neither
    percent: bool = False


_TRAINING = (
    _Last("reward", "Reward", 1),
    _Last("reward/quality", "Quality", 1),
    _Last("length/abs_log_ratio", "Length error", -1),
    _Last("length/ratio", "Length ratio"),
    _Last("length/within_20", "Within 20 % of the target", 1, percent=True),
    _Last("completions/clipped_ratio", "Cut off", -1, percent=True),
    _Last("reward/self_repetition", "Self-repetition", -1),
    _Last("entropy", "Entropy"),
)


def final_table(runs: Sequence[Named]) -> list[tuple[str, list[Measured]]]:
    """(heading, lines): training prompts at the end, held-out prompts at the end, cost."""
    found = [
        (f"Training prompts, mean of the last {WINDOW} steps", list(_training(runs))),
        ("Held-out prompts, at the end", list(_held_out(runs))),
        ("Work", list(_work(runs))),
    ]
    return [(heading, lines) for heading, lines in found if lines]


def differing_settings(runs: Sequence[Named]) -> list[tuple[str, list[str]]]:
    """(dotted key, value in each run), where not all values are equal; `-` where a run has none."""
    flat = [dict(_flatten(named.run.config)) for named in runs]
    keys = sorted({key for one in flat for key in one} - _NO_DIFFERENCE)
    rows = [(key, [_setting(one, key) for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def clear_best(samples: Sequence[np.ndarray], better: int, *, paired: bool = False) -> int | None:
    """Which sample's mean beats every other's by more than two standard errors of the difference.

    Args:
        samples: one (n,) array a run; fewer than three values tell no noise.
        better: 1 where more is better, -1 where less is, 0: there is no best.
        paired: the values are of the same prompts in the same order.
    """
    if better == 0 or len(samples) < 2 or min(len(s) for s in samples) < 3:
        return None
    means = [float(s.mean()) for s in samples]
    first = max(range(len(samples)), key=lambda i: better * means[i])

    def is_beaten(other: int) -> bool:
        noise = two_standard_errors(samples[first], samples[other], paired=paired)
        return noise is not None and better * (means[first] - means[other]) > noise

    clear = all(is_beaten(i) for i in range(len(samples)) if i != first)
    return first if clear else None


def held_out_stories(named: Named) -> list[dict[str, Any]]:
    """Rows of the evaluation at the end; none without one."""
    return list(named.run.evals.get("end", {}).get("stories") or [])


def share_held_out(runs: Sequence[Named]) -> bool:
    """Whether the evaluations at the end, where there are any, were of the same prompts."""
    asked = [asked_prompts(held_out_stories(named)) for named in runs]
    known = [prompts for prompts in asked if prompts]
    return all(prompts == known[0] for prompts in known)


def _training(runs: Sequence[Named]) -> Iterator[Measured]:
    for metric in _TRAINING:
        ends = [named.run.series(metric.key)[-WINDOW:] for named in runs]
        known = [end[np.isfinite(end)] for end in ends]
        best = clear_best(known, metric.better)
        yield from _line(metric.label, "", known, best, metric.percent)


def _held_out(runs: Sequence[Named]) -> Iterator[Measured]:
    """Means over prompts: those that all runs have a value for, or each its own and no mark."""
    same = share_held_out(runs)
    for measure in MEASURES:
        found = [prompt_values(held_out_stories(named), measure.key) for named in runs]
        known = [values for values in found if values]
        shared = {
            prompt for prompt in (known[0] if known else {}) if all(prompt in k for k in known)
        }
        samples = [
            np.array([values[p] for p in sorted(shared if same and values else values)])
            for values in found
        ]
        best = clear_best(samples, measure.better, paired=True) if same else None
        yield from _line(measure.label, measure.hint, samples, best, percent=False)


def _line(
    label: str, hint: str, samples: Sequence[np.ndarray], best: int | None, percent: bool
) -> Iterator[Measured]:
    if not any(len(sample) for sample in samples):
        return
    cells = [
        Cell(number(float(sample.mean()), percent) if len(sample) else "-", i == best)
        for i, sample in enumerate(samples)
    ]
    yield Measured(label, hint, cells)


def _work(runs: Sequence[Named]) -> Iterator[Measured]:
    yield Measured("Steps", "", [Cell(f"{len(named.run.rows):,}") for named in runs])
    steps = [named.run.series("perf/step_s") for named in runs]
    if any(np.isfinite(s).any() for s in steps):
        yield Measured("Seconds a step", "median", [Cell(_median(s)) for s in steps])
    walls = [named.run.summary.get("wall_s") for named in runs]
    if any(isinstance(wall, int | float) for wall in walls):
        yield Measured("Minutes", "wall time", [Cell(_minutes(wall)) for wall in walls])
    yield Measured("Ended as", "", [Cell(_status(named.run)) for named in runs])


def _median(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return number(float(np.median(known))) if len(known) else "-"


def _minutes(wall: Any) -> str:
    return number(wall / 60) if isinstance(wall, int | float) else "-"


def _status(run: RunFolder) -> str:
    return str(run.summary.get("status") or "no summary")


def _flatten(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _setting(flat: dict[str, Any], key: str) -> str:
    if key not in flat:
        return "-"
    text = yaml.safe_dump(flat[key], default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()
