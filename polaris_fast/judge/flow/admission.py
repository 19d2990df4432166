"""What a request passes before it is sent, in this order, and what its end teaches.

    breaker     waits while the judge is down; fails at once when it was given up
    gate        a place among the requests in flight
    cost        waits while calls under way hold the rest of the budget; fails when it is spent
    buckets     requests and tokens a minute
    breaker     once more: what it passed may have opened meanwhile, and it waits from the start

None of these waits is the judge's work, so a caller should not count them against a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ..faults import FaultKind, JudgeFault, JudgeStopped
from .aimd import AdaptiveLimit
from .bell import Bell
from .breaker import Breaker, BreakerState
from .buckets import Bucket
from .cost import CostBudget, Verdict
from .gate import Gate

_NO_ANSWER = (FaultKind.TRANSIENT, FaultKind.TIMEOUT, FaultKind.QUOTA, FaultKind.AUTH)


@dataclass(slots=True)
class Permit:
    """Leave to send one request; the caller fills in what it came to."""

    estimated_tokens: float
    bound_usd: float | None = None  # None: no money was set aside
    cost_usd: float = 0.0
    tokens: float = 0.0


class Admission:
    """The flow control of one endpoint; cost budget and bell are shared with others."""

    def __init__(
        self,
        limit: AdaptiveLimit,
        breaker: Breaker,
        cost: CostBudget,
        bell: Bell,
        *,
        now: Callable[[], float],
        on_open: Callable[[], None],
        requests: Bucket | None = None,
        tokens: Bucket | None = None,
    ) -> None:
        """
        Args:
            bell: rung when the breaker's state or the money that is free has changed.
            now: clock in seconds.
            on_open: called when the breaker opens; to see to it that the judge is probed.
            requests: bucket of requests a minute.
            tokens: bucket of tokens a minute.
        """
        self.limit, self.breaker, self.cost, self.bell = limit, breaker, cost, bell
        self.gate = Gate(limit, now)
        self._now, self._on_open = now, on_open
        self._requests, self._tokens = requests, tokens

    async def enter(self, order: int, *, bound_usd: float, tokens: float) -> Permit:
        """Wait until a request may be sent; to be followed by `leave`.

        Args:
            order: the job's number; older jobs go first.
            bound_usd: what the request costs at most.
            tokens: what it and its answer will probably come to.

        Raises:
            JudgeStopped: the judge was given up, or the budget is spent.
        """
        while True:
            await self._place(order)
            permit = Permit(tokens)
            try:
                await self._money(bound_usd)
                permit.bound_usd = bound_usd
                await self._pace(tokens)
            except BaseException:
                self._give_back(permit)
                raise
            if self.breaker.state is BreakerState.CLOSED:  # not opened while this one waited
                return permit
            self._refund(tokens)
            self._give_back(permit)

    def leave(self, permit: Permit) -> None:
        """The request is over; books what the caller wrote into the permit."""
        if self._tokens is not None:
            self._tokens.correct(permit.estimated_tokens, permit.tokens)
        self._give_back(permit)

    def learn(self, fault: JudgeFault | None) -> None:
        """How a request ended, for limiter and breaker; None: with an answer."""
        now = self._now()
        if fault is not None and fault.kind is FaultKind.THROTTLE:
            self.limit.throttled(now, fault.retry_after_s)
            return
        if fault is None or fault.kind not in _NO_ANSWER:
            self.limit.answered(now)
        else:
            self.limit.failed()
        was = self.breaker.state
        if fault is None:
            self.breaker.succeeded(now)
        elif fault.kind in (FaultKind.QUOTA, FaultKind.AUTH):
            self.breaker.trip(now, fault.kind, fault.detail)
        elif fault.kind in (FaultKind.TRANSIENT, FaultKind.TIMEOUT):
            others = self.gate.in_flight - 1
            self.breaker.failed(now, fault.kind, fault.detail, under_way=others)
        else:
            self.breaker.succeeded(now)
        if was is BreakerState.CLOSED and self.breaker.state is BreakerState.OPEN:
            self._on_open()

    async def _place(self, order: int) -> None:
        while True:
            await self._judge_up()
            await self.gate.enter(order)
            if self.breaker.state is BreakerState.CLOSED:  # not opened while this one queued
                return
            self.gate.leave()

    async def _judge_up(self) -> None:
        while self.breaker.state is BreakerState.OPEN:
            await self.bell.wait()
        if self.breaker.state is BreakerState.GIVEN_UP:
            raise JudgeStopped(self.breaker.kind, self.breaker.reason)

    async def _money(self, bound_usd: float) -> None:
        while (verdict := self.cost.reserve(bound_usd)) is Verdict.WAIT:
            await self.bell.wait()
        if verdict is Verdict.STOP:
            raise JudgeStopped(FaultKind.BUDGET, self.cost.message(bound_usd))

    async def _pace(self, tokens: float) -> None:
        now = self._now()
        waits_s = [0.0]
        if self._requests is not None:
            waits_s.append(self._requests.take(1.0, now))
        if self._tokens is not None:
            waits_s.append(self._tokens.take(tokens, now))
        if max(waits_s) <= 0:
            return
        try:
            await asyncio.sleep(max(waits_s))
        except asyncio.CancelledError:  # a hedge that is not needed any more
            self._refund(tokens)
            raise

    def _refund(self, tokens: float) -> None:
        """Nothing was sent: its share of the minute is free again."""
        if self._requests is not None:
            self._requests.correct(1.0, 0.0)
        if self._tokens is not None:
            self._tokens.correct(tokens, 0.0)

    def _give_back(self, permit: Permit) -> None:
        if permit.bound_usd is not None:
            self.cost.settle(permit.bound_usd, permit.cost_usd)
        self.gate.leave()
        if self.cost.limit_usd is not None:
            self.bell.ring()
