"""How a judge is doing at this moment, for people who watch a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JudgeHealth:
    """A snapshot; totals are since the pool was opened."""

    jobs_in_flight: int = 0  # without an outcome
    requests_in_flight: int = 0
    waiting: int = 0  # requests that wait for a place
    limit: int = 0  # requests that may be in flight
    max_limit: int = 0
    throttle_cuts: int = 0  # times the limit was cut, total
    breaker: str = "closed"  # closed, open or given_up
    breaker_reason: str = ""  # why it is not closed, for people
    breaker_opened: int = 0  # times, total
    paused_s: float = 0.0  # since it opened
    num_calls: int = 0  # total
    num_retries: int = 0  # total
    num_throttles: int = 0  # total
    num_faults: int = 0  # tries that failed, throttles among them, total
    latency_p95_s: float | None = None  # of recent answers; None: too few so far
    spent_usd: float = 0.0
    max_cost_usd: float | None = None

    @property
    def is_paused(self) -> bool:
        """Whether nothing is sent because the judge is down."""
        return self.breaker != "closed"
