"""Whether the run learned, in numbers: the first steps against the last, and held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .folder import RunFolder
from .prompts import prompt_values, two_standard_errors

WINDOW = 5  # steps at either end; fewer when the run is short, so that the ends do not overlap


@dataclass(frozen=True)
class Measure:
    """A metric that the verdict is about."""

    key: str
    eval_keys: tuple[str, ...]  # the first that an evaluation has
    label: str
    hint: str
    better: int  # 1: more is better, -1: less is better
    relative: bool = False  # the change is told in per cent


MEASURES = (
    Measure("reward", ("eval/reward",), "Reward", "mean over the stories that the model wrote", 1),
    Measure(
        "length/abs_log_ratio",
        ("eval/length/abs_log_ratio", "eval/abs_log_ratio"),
        "Length error",
        "mean |ln(words / target)|; 0.10 is about 10 % off",
        -1,
        relative=True,
    ),
    Measure(
        "reward/quality", ("eval/quality",), "Quality", "the judge's score / 100, length apart", 1
    ),
)


@dataclass(frozen=True)
class Ends:
    """A value before and after; `noise` is two standard errors of the difference, None: unknown."""

    before: float
    after: float
    noise: float | None

    @property
    def change(self) -> float:
        """After minus before."""
        return self.after - self.before

    def trend(self, better: int) -> str:
        """better, worse, same (within noise), or unknown: too little data to know the noise."""
        if self.noise is None:
            return "unknown"
        if abs(self.change) <= self.noise:
            return "same"
        return "better" if self.change * better > 0 else "worse"


@dataclass(frozen=True)
class Finding:
    """One card of the verdict."""

    measure: Measure
    train: Ends | None
    only: float | None  # the single value of a run too short to compare
    held_out: Ends | None

    @property
    def trend(self) -> str:
        """Of the training prompts; none when the run is too short."""
        return self.train.trend(self.measure.better) if self.train else "none"


@dataclass(frozen=True)
class Verdict:
    """The strip at the top of the report."""

    window: int
    findings: list[Finding]
    sentence: str
    held_out_prompts: int
    held_out_stories: int


def judge_run(run: RunFolder) -> Verdict:
    """Compare both ends of the run for every measure that it has."""
    window = min(WINDOW, len(run.rows) // 2)
    findings = [_finding(run, measure, window) for measure in MEASURES]
    findings = [f for f in findings if f.train or f.held_out or f.only is not None]
    first_eval = next(iter(run.evals.values()), {})
    return Verdict(
        window=window,
        findings=findings,
        sentence=_sentence(findings, window),
        held_out_prompts=int(first_eval.get("num_prompts") or 0),
        held_out_stories=int(first_eval.get("num_stories") or 0),
    )


def both_ends(values: np.ndarray, window: int) -> Ends | None:
    """Means of the first and the last `window` steps, as far as they have numbers."""
    head, tail = values[:window], values[len(values) - window :]
    head, tail = head[np.isfinite(head)], tail[np.isfinite(tail)]
    if window == 0 or not len(head) or not len(tail):
        return None
    noise = two_standard_errors(head, tail, paired=False)
    return Ends(float(head.mean()), float(tail.mean()), noise)


def _held_out(run: RunFolder, measure: Measure) -> Ends | None:
    """The evaluation's own means; the noise comes from its prompts."""
    evals = [run.evals.get(name, {}) for name in ("start", "end")]
    before, after = (_eval_mean(e.get("metrics") or {}, measure) for e in evals)
    if before is None or after is None:
        return None
    first, last = (prompt_values(e.get("stories") or [], measure.key) for e in evals)
    both = [prompt for prompt in first if prompt in last]
    a, b = (np.array([values[prompt] for prompt in both]) for values in (first, last))
    return Ends(before, after, two_standard_errors(a, b, paired=True))


def _eval_mean(metrics: dict[str, Any], measure: Measure) -> float | None:
    found = (metrics.get(key) for key in measure.eval_keys)
    return next((float(mean) for mean in found if isinstance(mean, int | float)), None)


def _finding(run: RunFolder, measure: Measure, window: int) -> Finding:
    values = run.series(measure.key)
    train = both_ends(values, window)
    known = values[np.isfinite(values)]
    only = float(known[-1]) if train is None and len(known) else None
    return Finding(measure, train, only, _held_out(run, measure))


def _sentence(findings: list[Finding], window: int) -> str:
    """Changes first, then what stayed within noise."""
    told = [f for f in findings if f.train is not None]
    if not told:
        return "The run is too short to compare its first steps with its last."
    clauses = [_change(f) for f in told if f.trend != "same"]
    still = [f.measure.label.lower() for f in told if f.trend == "same"]
    if still:
        clauses.append(f"{_join(still)} stayed within noise")
    span = "step to the last" if window == 1 else f"{window} steps to the last {window}"
    return f"From the first {span}, {_join(clauses)}."


def _change(finding: Finding) -> str:
    ends, measure = finding.train, finding.measure
    assert ends is not None
    amount = f"{abs(ends.change):.2f}"
    if measure.relative and ends.before > 0:
        amount = f"{100 * abs(ends.change) / ends.before:.0f}\N{NO-BREAK SPACE}%"
    return f"{measure.label.lower()} {'rose' if ends.change > 0 else 'fell'} by {amount}"


def _join(parts: list[str]) -> str:
    *head, tail = parts
    return f"{', '.join(head)} and {tail}" if head else tail
