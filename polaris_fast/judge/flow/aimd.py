"""How many requests may be in flight: slow start, then up by 5 % a clean round, down by a fifth.

    limit <- 2 limit          after a round without a burst, until the first burst (slow start)
    limit <- 1.05 limit       the same, later on
    limit <- 0.8 limit        at a burst of throttling; the next cut at least 15 s later

A round is as many answers as the limit (at least 10). Throttling is a burst once it makes up more
than a fifth of a round: an endpoint that is really over its limit turns away more than that, and
a stray 429 says nothing about how many requests it can bear. A burst also holds every request back
for as long as the endpoint asks. Server errors and timeouts are no answers: they cut nothing, that
is the breaker's, but a round with more than a fifth as many of them is not clean, and adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_ROUND = 10  # answers
BURST_SHARE = 0.2  # of a round's answers
CUT, GROWTH, SLOW_START = 0.8, 1.05, 2.0


@dataclass(frozen=True, slots=True)
class LimitRange:
    """Requests in flight: the least, the first and the greatest limit; the last one wins."""

    low: int = 10
    start: int = 20
    high: int = 100


class AdaptiveLimit:
    """The limit as answers come in; `now` is any clock in seconds."""

    def __init__(
        self, limits: LimitRange, *, cooldown_s: float = 15.0, hold_s: float = 1.0
    ) -> None:
        """
        Args:
            limits: bounds; `low` and `start` are lowered to `high`.
            cooldown_s: after a cut no further cut and no growth for this long, or Retry-After.
            hold_s: how long a burst holds requests when the endpoint names no time.
        """
        self._high = float(limits.high)
        self._low = min(float(limits.low), self._high)
        self._cooldown_s, self._hold_s = cooldown_s, hold_s
        self._value = max(self._low, min(float(limits.start), self._high))
        self._slow_start = True
        self._cool_until = 0.0
        self._answers = self._throttles = self._faults = 0
        self.hold_until = 0.0  # nothing is sent before
        self.num_cuts = 0

    @property
    def limit(self) -> int:
        """Requests that may be in flight, at least 1."""
        return max(1, int(self._value))

    def answered(self, now: float) -> None:
        """A request was answered, well or not."""
        self._answers += 1
        self._end_round(now)

    def failed(self) -> None:
        """A request came to nothing: no sign that the endpoint could bear more."""
        self._faults += 1

    def throttled(self, now: float, retry_after_s: float | None) -> None:
        """A request was turned away for coming too fast."""
        self._answers += 1
        self._throttles += 1
        if self._throttles <= BURST_SHARE * self._round:
            self._end_round(now)
            return
        self._new_round()
        asked_s = self._hold_s if retry_after_s is None else retry_after_s
        self.hold_until = max(self.hold_until, now + asked_s)
        if now >= self._cool_until:
            self._value = max(self._low, CUT * self._value)
            self._slow_start = False
            self.num_cuts += 1
            self._cool_until = now + self._cooldown_s
        self._cool_until = max(self._cool_until, self.hold_until)

    @property
    def _round(self) -> int:
        return max(MIN_ROUND, self.limit)

    def _end_round(self, now: float) -> None:
        if self._answers < self._round:
            return
        clean = self._faults <= BURST_SHARE * self._round
        self._new_round()
        if clean and now >= self._cool_until:
            grown = self._value * (SLOW_START if self._slow_start else GROWTH)
            self._value = min(self._high, max(grown, self._value + 1))

    def _new_round(self) -> None:
        self._answers = self._throttles = self._faults = 0
