"""Counters of a scorer: written by its loop, read and reset by the trainer.

Keys (`judge/...`), all since the last `take` unless they say "now":

    submitted, scored, failed, rejected   jobs; over a run scored + failed + rejected = submitted
    failures/<class>                      failed and rejected jobs by the class that ended them
    drops/under_1k_words, 1k_to_4k_words, over_4k_words
                                          the same jobs by length: long stories time out more
    faults/<class>                        single tries that failed, by class
    calls, retries, hedges, hedges_won, journal_hits
    resampled                             jobs of close groups, judged a second time
    latency_s/p50, p95, p99               seconds of one answered try
    queue_s/p95                           seconds from the wish to send a request to its sending
    prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, cached_share
    cost_usd                              where prices are known; of requests whose answers never
                                          came (cut, timed out, hedges' losers) it is estimated
    quality, quality_std, human/quality   over scored policy and human rows
    dim/<name>, dim_std/<name>            the rubric's dimensions, scored policy rows
    human/dim/<name>, human/dim_std/<name>
    length_correlation                    Pearson's r of quality and words, scored policy rows
    flags/<flag>                          scored jobs with that flag
    in_flight                             jobs without an outcome now
    gauges of `JudgePool`: limit, throttle_cuts, waiting, requests_in_flight, breaker_open,
    breaker_opened, retry_budget_left, spent_usd      now

Memory does not grow with the number of jobs between two calls of `take`.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict
from collections.abc import Callable

from ..types import Failed, Outcome, Rejected, RowKind, Scored
from .completion import Answer
from .faults import FaultKind
from .jobs import JudgeJob
from .sketch import Correlation, Moments, QuantileSketch

_ALWAYS = ("submitted", "scored", "failed", "rejected", "retries")
_LENGTHS = ((1000, "under_1k_words"), (4000, "1k_to_4k_words"), (math.inf, "over_4k_words"))


class ScorerMetrics:
    """Thread-safe; `take` returns the numbers since the last call."""

    def __init__(self, gauges: Callable[[], dict[str, float]] = dict) -> None:
        """
        Args:
            gauges: further numbers that hold at the moment of `take`.
        """
        self._lock = threading.Lock()
        self._gauges = gauges
        self._in_flight = self._batch = 0
        self.totals: Counter[str] = Counter()  # calls, retries, faults: never reset
        self._reset()

    def _reset(self) -> None:
        self._counts: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self._moments: defaultdict[str, Moments] = defaultdict(Moments)
        self._length = Correlation()
        self._latency_s, self._queue_s = QuantileSketch(), QuantileSketch()

    @property
    def in_flight(self) -> int:
        """Jobs without an outcome."""
        return self._in_flight

    @property
    def batch(self) -> int:
        """Jobs submitted since there were none in flight."""
        return self._batch

    def job_submitted(self) -> None:
        with self._lock:
            self._batch = self._batch + 1 if self._in_flight else 1
            self._counts["submitted"] += 1
            self._in_flight += 1

    def job_ended(self, job: JudgeJob, outcome: Outcome) -> None:
        with self._lock:
            self._in_flight -= 1
            match outcome:
                case Scored():
                    self._scored(job, outcome)
                case Failed(_, kind):
                    self._counts["failed"] += 1
                    self._dropped(job, kind)
                case Rejected():
                    self._counts["rejected"] += 1
                    self._dropped(job, FaultKind.REFUSAL)

    def try_failed(self, kind: str) -> None:
        with self._lock:
            self._counts[f"faults/{kind}"] += 1
            self.totals.update(("faults", f"faults/{kind}"))

    def count(self, name: str) -> None:
        """One more of `calls`, `retries`, `hedges`, `hedges_won`, `journal_hits`, ..."""
        with self._lock:
            self._counts[name] += 1
            self.totals[name] += 1

    def sent(self, queue_s: float) -> None:
        with self._lock:
            self._counts["calls"] += 1
            self.totals["calls"] += 1
            self._queue_s.add(queue_s)

    def paid(self, cost_usd: float) -> None:
        with self._lock:
            self._sums["cost_usd"] += cost_usd  # type: ignore[assignment]  # a Counter holds floats

    def answered(self, answer: Answer, latency_s: float) -> None:
        with self._lock:
            self._latency_s.add(latency_s)
            for name in ("prompt", "cached", "completion", "reasoning"):
                self._counts[f"{name}_tokens"] += getattr(answer, f"{name}_tokens")

    def take(self) -> dict[str, float]:
        """The numbers since the last call; percentiles and means only where there are values."""
        gauges = self._gauges()
        with self._lock:
            values = dict.fromkeys(_ALWAYS, 0.0)
            values |= {key: float(count) for key, count in self._counts.items()}
            values |= {key: float(total) for key, total in self._sums.items()}
            values |= self._distributions()
            values["in_flight"] = float(self._in_flight)
            self._reset()
        values |= gauges
        return {f"judge/{key}": value for key, value in values.items() if math.isfinite(value)}

    def _distributions(self) -> dict[str, float]:
        """What has no value may be nan here."""
        values = {"length_correlation": self._length.r, "queue_s/p95": self._queue_s.quantile(0.95)}
        for percent in (50, 95, 99):
            values[f"latency_s/p{percent}"] = self._latency_s.quantile(percent / 100)
        if prompt_tokens := self._counts["prompt_tokens"]:
            values["cached_share"] = self._counts["cached_tokens"] / prompt_tokens
        for key, moments in self._moments.items():
            prefix, _, name = key.rpartition("dim/")
            values[key] = moments.mean
            values[f"{prefix}dim_std/{name}" if name != key else f"{key}_std"] = moments.std
        return values

    def _scored(self, job: JudgeJob, scored: Scored) -> None:
        self._counts["scored"] += 1
        if job.kind is RowKind.CANARY:  # no story of the run
            return
        human = job.kind is RowKind.HUMAN
        prefix = "human/" if human else ""
        self._moments[f"{prefix}quality"].add(scored.quality)
        for name, score in scored.dimensions.items():
            self._moments[f"{prefix}dim/{name}"].add(score)
        if not human:
            self._length.add(float(len(job.story.split())), scored.quality)
        self._counts.update(f"flags/{flag}" for flag in {f.partition(":")[0] for f in scored.flags})

    def _dropped(self, job: JudgeJob, kind: str) -> None:
        self._counts[f"failures/{kind}"] += 1
        words = len(job.story.split())
        self._counts[f"drops/{next(name for most, name in _LENGTHS if words < most)}"] += 1
