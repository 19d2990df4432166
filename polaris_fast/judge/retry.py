"""When one judgement is tried again, and how long to wait: the only retry layer there is.

    throttle              until the deadline; uses up no try
    transient, timeout    until `max_attempts` tries are used up
    truncated             the same, with the cap on the answer doubled
    invalid               at most two more, each with the validator's message
    refusal               one more
    quota, auth, ...      never

Waits are full-jitter exponential, and at least what Retry-After asks for. A wait that would end
after the deadline is not begun.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception
from tenacity.wait import wait_random_exponential

from .faults import FaultKind, JudgeFault

MAX_REASKS = 2
MAX_REFUSAL_RETRIES = 1
_UNTIL_ATTEMPTS = {FaultKind.TRANSIENT, FaultKind.TIMEOUT, FaultKind.TRUNCATED}


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds: the n-th wait is uniform in [0, min(max_s, base_s * 2^(n-1))]."""

    base_s: float = 1.0
    max_s: float = 60.0


@dataclass(slots=True)
class TryCount:
    """The faults of one judgement so far, and whether another try is allowed."""

    max_attempts: int
    faults: Counter[FaultKind] = field(default_factory=Counter)

    def may_retry(self, error: BaseException) -> bool:
        """Count a fault and say whether to try again; False for anything but a JudgeFault."""
        if not isinstance(error, JudgeFault):
            return False
        self.faults[error.kind] += 1
        if error.kind is FaultKind.THROTTLE:
            return True
        if self.tries_used >= self.max_attempts:
            return False
        if error.kind is FaultKind.INVALID:
            return self.faults[error.kind] <= MAX_REASKS
        if error.kind is FaultKind.REFUSAL:
            return self.faults[error.kind] <= MAX_REFUSAL_RETRIES
        return error.kind in _UNTIL_ATTEMPTS

    @property
    def tries_used(self) -> int:
        """Tries that count against `max_attempts`."""
        return self.faults.total() - self.faults[FaultKind.THROTTLE]


def retrying(
    tries: TryCount,
    backoff: Backoff,
    *,
    deadline_at: float,
    before_sleep: Callable[[RetryCallState], None],
    clock: Callable[[], float] = time.monotonic,
) -> AsyncRetrying:
    """A tenacity loop that re-raises the last JudgeFault when it gives up.

    Args:
        deadline_at: the time by `clock`, in seconds, after which no try begins.
        before_sleep: called once for each retry.
    """
    jitter = wait_random_exponential(multiplier=backoff.base_s, max=backoff.max_s)

    def wait_s(state: RetryCallState) -> float:
        fault = state.outcome.exception() if state.outcome else None
        asked = fault.retry_after_s if isinstance(fault, JudgeFault) else None
        return max(jitter(state), asked or 0.0)

    def too_late(state: RetryCallState) -> bool:
        return clock() + state.upcoming_sleep >= deadline_at

    return AsyncRetrying(
        retry=retry_if_exception(tries.may_retry),
        wait=wait_s,
        stop=too_late,
        sleep=asyncio.sleep,
        before_sleep=before_sleep,
        reraise=True,
    )
