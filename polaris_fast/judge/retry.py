"""When one judgement is tried again, and how long to wait: the only retry layer there is.

    throttle              until the deadline; uses up no try
    quota, auth           when the breaker lets requests through again, twice; uses up no try
    transient, timeout    until `max_attempts` tries are used up; no try while the judge is down
    truncated             one more, with the cap on the answer doubled
    invalid               at most two more, each with the validator's message
    inconsistent          one more, with the faults; what was there is kept if that comes to nothing
    refusal               one more
    too long, request, budget, a judge that was given up: never

Every retry but those that use up no try is drawn from the retry budget that all jobs share.
Waits for a judge that is busy or failing are full-jitter exponential, and at least what Retry-After
asks for; the others do not wait. A wait that would end after the deadline is not begun.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception
from tenacity.wait import wait_random_exponential

from .faults import FaultKind, JudgeFault, JudgeStopped

MAX_RETRIES = {
    FaultKind.TRUNCATED: 1,
    FaultKind.INVALID: 2,
    FaultKind.INCONSISTENT: 1,
    FaultKind.REFUSAL: 1,
}
MAX_COMEBACKS = 2
_DOWN = {FaultKind.QUOTA, FaultKind.AUTH}
_UNWELL = {FaultKind.TRANSIENT, FaultKind.TIMEOUT}
_BACK_OFF = _UNWELL | {FaultKind.THROTTLE}


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds: the n-th wait is uniform in [0, min(max_s, base_s * 2^(n-1))]."""

    base_s: float = 1.0
    max_s: float = 60.0


@dataclass(slots=True)
class Deadline:
    """When a judgement ends at the latest; time that is not the judge's is added."""

    at: float  # by the clock that is passed to `left_s`

    def left_s(self, now: float) -> float:
        """Seconds that are left, negative when it is over."""
        return self.at - now

    def extend(self, seconds: float) -> None:
        """Waiting for a place, for money or for a judge that was down does not count."""
        self.at += seconds


@dataclass(slots=True)
class TryCount:
    """The faults of one judgement so far, and whether another try is allowed."""

    max_attempts: int
    spend: Callable[[], bool] = lambda: True  # one retry of the shared budget, if there is one
    is_down: Callable[[], bool] = lambda: False  # whether the breaker is open
    faults: Counter[FaultKind] = field(default_factory=Counter)
    tries_used: int = 0  # tries that count against `max_attempts`

    def may_retry(self, error: BaseException) -> bool:
        """Count a fault and say whether to try again; False for anything but a JudgeFault."""
        if not isinstance(error, JudgeFault) or isinstance(error, JudgeStopped):
            return False
        kind = error.kind
        self.faults[kind] += 1
        if kind is FaultKind.THROTTLE:
            return True
        if kind in _DOWN:  # a story that brings it about each time must not go round for ever
            return self.faults[kind] <= MAX_COMEBACKS
        if kind in _UNWELL and self.is_down():  # the judge's fault, not this story's
            return True
        self.tries_used += 1
        if self.tries_used >= self.max_attempts:
            return False
        allowed = kind in _UNWELL or self.faults[kind] <= MAX_RETRIES.get(kind, 0)
        return allowed and self.spend()


def retrying(
    tries: TryCount,
    backoff: Backoff,
    *,
    deadline: Deadline,
    before_sleep: Callable[[RetryCallState], None],
    clock: Callable[[], float] = time.monotonic,
) -> AsyncRetrying:
    """A tenacity loop that re-raises the last JudgeFault when it gives up.

    Args:
        deadline: after which no try begins, by `clock`.
        before_sleep: called once for each retry.
    """
    jitter = wait_random_exponential(multiplier=backoff.base_s, max=backoff.max_s)

    def wait_s(state: RetryCallState) -> float:
        fault = state.outcome.exception() if state.outcome else None
        if not isinstance(fault, JudgeFault) or fault.kind not in _BACK_OFF or tries.is_down():
            return 0.0
        return max(jitter(state), fault.retry_after_s or 0.0)

    def too_late(state: RetryCallState) -> bool:
        return deadline.left_s(clock()) <= state.upcoming_sleep

    return AsyncRetrying(
        retry=retry_if_exception(tries.may_retry),
        wait=wait_s,
        stop=too_late,
        sleep=asyncio.sleep,
        before_sleep=before_sleep,
        reraise=True,
    )
