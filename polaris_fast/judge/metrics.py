"""Counters of a scorer: written by its loop, read and reset by the trainer.

Keys (`judge/...`), all since the last `take`:

    submitted, scored, failed, rejected   jobs; over a run scored + failed + rejected = submitted
    in_flight                             jobs without an outcome now
    failures/<class>                      failed and rejected jobs by the class that ended them
    faults/<class>                        single tries that failed, by class
    retries                               tries after the first of a judgement
    latency_s/p50, p95, p99               seconds of one answered try
    prompt_tokens, cached_tokens, completion_tokens
    quality, dim/<name>                   means over scored jobs
    flags/<flag>                          scored jobs with that flag
"""

from __future__ import annotations

import threading
from collections import Counter

from ..types import Failed, Outcome, Rejected, Scored
from .client import Answer
from .faults import FaultKind


class ScorerMetrics:
    """Thread-safe; `take` returns the numbers since the last call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_flight = 0
        self._reset()

    def _reset(self) -> None:
        self._counts: Counter[str] = Counter()
        self._sums: dict[str, float] = {}
        self._latencies_s: list[float] = []

    def job_submitted(self) -> None:
        with self._lock:
            self._counts["submitted"] += 1
            self._in_flight += 1

    def job_ended(self, outcome: Outcome) -> None:
        with self._lock:
            self._in_flight -= 1
            match outcome:
                case Scored(quality, dimensions, _, flags):
                    self._counts["scored"] += 1
                    self._add("quality", quality)
                    for name, score in dimensions.items():
                        self._add(f"dim/{name}", score)
                    self._counts.update(
                        f"flags/{flag}" for flag in {f.partition(":")[0] for f in flags}
                    )
                case Failed(_, kind):
                    self._counts["failed"] += 1
                    self._counts[f"failures/{kind}"] += 1
                case Rejected():
                    self._counts["rejected"] += 1
                    self._counts[f"failures/{FaultKind.REFUSAL}"] += 1

    def try_failed(self, kind: FaultKind) -> None:
        with self._lock:
            self._counts[f"faults/{kind}"] += 1

    def retried(self) -> None:
        with self._lock:
            self._counts["retries"] += 1

    def answered(self, answer: Answer, latency_s: float) -> None:
        with self._lock:
            self._latencies_s.append(latency_s)
            self._counts["prompt_tokens"] += answer.prompt_tokens
            self._counts["cached_tokens"] += answer.cached_tokens
            self._counts["completion_tokens"] += answer.completion_tokens

    def take(self) -> dict[str, float]:
        """The numbers since the last call; percentiles and means only where there are values."""
        with self._lock:
            values: dict[str, float] = dict.fromkeys(
                ("submitted", "scored", "failed", "rejected", "retries"), 0.0
            )
            values |= {key: float(count) for key, count in self._counts.items()}
            scored = self._counts["scored"]
            values |= {key: total / scored for key, total in self._sums.items()}
            values["in_flight"] = float(self._in_flight)
            latencies = sorted(self._latencies_s)
            self._reset()
        if latencies:
            for percent in (50, 95, 99):
                values[f"latency_s/p{percent}"] = percentile(latencies, percent)
        return {f"judge/{key}": value for key, value in values.items()}

    def _add(self, key: str, value: float) -> None:
        self._sums[key] = self._sums.get(key, 0.0) + value


def percentile(ordered: list[float], percent: float) -> float:
    """The smallest of the sorted, non-empty values that `percent` of them do not exceed."""
    rank = -(-len(ordered) * percent // 100)  # ceiling
    return ordered[max(0, int(rank) - 1)]
