"""The endpoint's own limits: what goes over them is throttled, whatever the script says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """None: unlimited."""

    concurrency: int | None = None  # requests in flight
    requests_per_minute: float | None = None


class Gate:
    """Says which requests a provider with these limits would turn away."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._rate_per_s = (limits.requests_per_minute or 0.0) / 60
        self._most = max(1.0, self._rate_per_s)  # a second's worth may come at once
        self._tokens, self._at = self._most, clock()

    def turned_away(self, in_flight: int) -> tuple[str, float] | None:
        """("concurrency" or "rate", seconds to wait) of a request to be throttled, else None.

        Args:
            in_flight: requests under way, this one not counted.
        """
        most = self._limits.concurrency
        if most is not None and in_flight >= most:
            return "concurrency", 0.0
        if not self._rate_per_s:
            return None
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate_per_s)
        self._at = now
        if self._tokens < 1:
            return "rate", (1 - self._tokens) / self._rate_per_s
        self._tokens -= 1
        return None
