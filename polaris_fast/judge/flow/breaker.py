"""The circuit breaker: stops sending to a judge that is down, and asks now and then if it is back.

    closed     requests pass. Opens at once on a quota or key fault, or when server errors and
               timeouts are at least half of the last minute's answers (20 or more) and of what is
               under way besides: a failing server is quick, a slow answer is not a failure yet.
    open       requests wait. After a pause, which doubles from probe to probe, one canary is sent.
    given up   the judge was down for longer than the patience: every request fails at once.

Throttling is no failure: the limiter deals with it. Refusals and invalid answers come from a judge
that works.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from ..faults import FaultKind

MIN_ANSWERS = 20
FAILURE_SHARE = 0.5
MAX_ANSWERS = 2000  # remembered at most
PAUSE_GROWTH = 2.0


class BreakerState(StrEnum):
    """What happens to a request that arrives now."""

    CLOSED = "closed"
    OPEN = "open"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class BreakerTimes:
    """Seconds."""

    window_s: float = 60.0
    pause_s: float = 5.0  # before the first probe
    max_pause_s: float = 60.0
    patience_s: float = 600.0


class Breaker:
    """The state as answers come in; `now` is any clock in seconds."""

    def __init__(self, times: BreakerTimes) -> None:
        self._times = times
        self._answers: deque[tuple[float, bool]] = deque(maxlen=MAX_ANSWERS)  # (when, failed)
        self._pause_s = times.pause_s
        self._opened_at = 0.0
        self.state = BreakerState.CLOSED
        self.reason = ""  # why it opened, for people
        self.kind = FaultKind.TRANSIENT  # of the fault that opened it
        self.num_opened = 0

    def succeeded(self, now: float) -> None:
        """The judge answered."""
        self._answers.append((now, False))

    def failed(self, now: float, kind: FaultKind, detail: str, *, under_way: int = 0) -> None:
        """A server error or a timeout; opens the breaker when there are too many.

        Args:
            under_way: other requests that have not been answered.
        """
        self._answers.append((now, True))
        while self._answers and self._answers[0][0] < now - self._times.window_s:
            self._answers.popleft()
        num = len(self._answers)
        bad = sum(failed for _, failed in self._answers)
        if num >= MIN_ANSWERS and bad >= FAILURE_SHARE * (num + under_way):
            self.trip(now, kind, f"{bad} of the last {num} requests failed ({detail})")

    def trip(self, now: float, kind: FaultKind, reason: str) -> None:
        """Open at once; nothing changes when it is open already."""
        if self.state is BreakerState.CLOSED:
            self.state, self.kind, self.reason = BreakerState.OPEN, kind, reason
            self._opened_at, self._pause_s = now, self._times.pause_s
            self.num_opened += 1

    def next_probe_s(self, now: float) -> float:
        """Seconds until the next canary: the pause, cut short where the patience ends."""
        return max(0.0, min(self._pause_s, self._opened_at + self._times.patience_s - now))

    def probe_failed(self, now: float, kind: FaultKind, reason: str) -> None:
        """The canary came to nothing: a longer pause, or the end of the patience."""
        self._pause_s = min(self._times.max_pause_s, PAUSE_GROWTH * self._pause_s)
        self.kind, self.reason = kind, reason
        if now - self._opened_at >= self._times.patience_s:
            self.state = BreakerState.GIVEN_UP

    def give_up(self, kind: FaultKind, reason: str) -> None:
        """Nothing can be sent any more."""
        self.state, self.kind, self.reason = BreakerState.GIVEN_UP, kind, reason

    def probe_succeeded(self) -> None:
        """The judge is back."""
        self.state = BreakerState.CLOSED
        self._answers.clear()

    def open_s(self, now: float) -> float:
        """Seconds since it opened, 0 when it is closed."""
        return 0.0 if self.state is BreakerState.CLOSED else now - self._opened_at
