"""Says in time that a judge struggles: its health over the last half minute, in words.

A view asks now and then; while all is well there is nothing to show.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from ..judge.health import JudgeHealth
from .base import clock, number

WINDOW_S = 30.0  # what the shares are taken over
LOOK_EVERY_S = 0.5
ENOUGH_TRIES = 10  # fewer say nothing about a share
MAX_FAILED_SHARE = 0.15
MAX_THROTTLED_SHARE = 0.10
STALL_S, STALL_OF_P95 = 60.0, 3.0  # nothing came back for so long, or so many times the p95
BUDGET_SHARE = 0.9  # of the cost budget


class State(IntEnum):
    """How alarmed to be."""

    WELL = 0
    STRUGGLING = 1  # judgements arrive, at a price
    PAUSED = 2  # none is asked for


@dataclass(frozen=True)
class Look:
    """What there is to say."""

    state: State = State.WELL
    troubles: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{'; '.join(self.troubles)} ({', '.join(self.numbers)})"


class JudgeWatch:
    """Follows the health of one judge; not thread-safe."""

    def __init__(
        self, health: Callable[[], JudgeHealth], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._health, self._now = health, now
        self._seen: deque[tuple[float, JudgeHealth]] = deque()
        self._moved_at = now()  # when a job last ended, or nothing was in flight
        self._looked_at = float("-inf")
        self._look = Look()

    def look(self) -> Look:
        """The latest look, taken anew when it is `LOOK_EVERY_S` old."""
        now = self._now()
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._look = self._take(now)
        return self._look

    def _take(self, now: float) -> Look:
        health = self._health()
        at, last = self._seen[-1] if self._seen else (now, health)
        idle = not health.requests_in_flight
        unwatched = now - at > WINDOW_S  # what happened meanwhile is not known
        if idle or unwatched or health.jobs_in_flight != last.jobs_in_flight:
            self._moved_at = now
        self._seen.append((now, health))
        while now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        if health.is_paused:
            return Look(State.PAUSED, (_paused(health),), _numbers(health))
        troubles = [*_shares(self._seen[0][1], health), *self._stall(health, now), *_money(health)]
        state = State.STRUGGLING if troubles else State.WELL
        return Look(state, tuple(troubles), _numbers(health))

    def _stall(self, health: JudgeHealth, now: float) -> list[str]:
        patience_s = max(STALL_S, STALL_OF_P95 * (health.latency_p95_s or 0.0))
        quiet_s = now - self._moved_at
        return [f"no judgement for {clock(quiet_s)}"] if quiet_s > patience_s else []


def _paused(health: JudgeHealth) -> str:
    for_how_long = f" for {clock(health.paused_s)}" if health.paused_s >= 1 else ""
    verb = "given up" if health.breaker == "given_up" else "paused"
    return f"{verb}{for_how_long}: {health.breaker_reason}"


def _shares(first: JudgeHealth, last: JudgeHealth) -> list[str]:
    """What part of the window's tries was throttled, and what part failed otherwise."""
    tries = last.num_calls - first.num_calls
    throttles = last.num_throttles - first.num_throttles
    failed = last.num_faults - first.num_faults - throttles
    found = []
    if tries >= ENOUGH_TRIES and failed > MAX_FAILED_SHARE * tries:
        found.append(f"{min(1.0, failed / tries):.0%} of tries fail")
    cut = last.throttle_cuts > first.throttle_cuts
    if cut or (tries >= ENOUGH_TRIES and throttles > MAX_THROTTLED_SHARE * tries):
        found.append(f"throttled to {last.limit} of {last.max_limit} requests at once")
    return found


def _money(health: JudgeHealth) -> list[str]:
    most = health.max_cost_usd
    if most is None or health.spent_usd < BUDGET_SHARE * most:
        return []
    return [f"${health.spent_usd:.2f} of ${most:.2f} are spent"]


def _numbers(health: JudgeHealth) -> tuple[str, ...]:
    parts = [f"{health.requests_in_flight} of {health.limit} in flight"]
    if health.waiting:
        parts.append(f"{health.waiting} waiting")
    if health.latency_p95_s is not None:
        parts.append(f"p95 {health.latency_p95_s:.2g} s")
    if health.num_retries:
        parts.append(f"{number(health.num_retries)} retries")
    if health.spent_usd:
        parts.append(f"${health.spent_usd:.2f}")
    return tuple(parts)
