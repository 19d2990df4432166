"""Is a judge that was down back? A canary, a story that any judge can score, asks now and then.

A canary and not a row: a story that breaks the judge would keep the breaker open for ever. Every
way out of the asking ends with the breaker closed or given up: all jobs wait for one of the two.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from .faults import FaultKind, JudgeFault, JudgeStopped
from .flow.bell import Bell
from .flow.breaker import Breaker, BreakerState
from .journal import JournalError

log = logging.getLogger(__name__)


class Prober:
    """Asks for one judge while its breaker is open; lives on the pool's loop."""

    def __init__(self, breaker: Breaker, bell: Bell, *, judge: str, patience_s: float) -> None:
        """
        Args:
            breaker: closed again when the judge answers, given up when it stays away.
            bell: rung when either is decided.
            judge: its address, for people.
            patience_s: `judge.breaker_patience_s`, for people.
        """
        self._breaker, self._bell = breaker, bell
        self._judge, self._patience_s = judge, patience_s
        self._ask: Callable[[], Awaitable[None]] | None = None
        self._task: asyncio.Task[None] | None = None

    def use(self, ask: Callable[[], Awaitable[None]]) -> None:
        """`ask` sends the canary past the breaker; raises JudgeFault or JournalError."""
        self._ask = ask

    def start(self) -> None:
        """The breaker has opened: ask until it is decided."""
        log.warning(
            "judge %s: %s; judging is paused, and the judge is asked again now and then for %.0f s",
            self._judge,
            self._breaker.reason,
            self._patience_s,
        )
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop asking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        breaker = self._breaker
        while breaker.state is BreakerState.OPEN:
            await asyncio.sleep(breaker.next_probe_s(time.monotonic()))
            await self._once()
        if breaker.state is BreakerState.GIVEN_UP:
            log.error("%s", breaker.reason)
        else:
            log.warning("judge %s: back, judging goes on", self._judge)
        self._bell.ring()

    async def _once(self) -> None:
        breaker = self._breaker
        assert self._ask is not None
        try:
            await self._ask()
        except JudgeStopped as fault:
            breaker.give_up(fault.kind, fault.detail)
        except JudgeFault as fault:
            if is_outage(fault):
                self._failed(fault.kind, fault.detail)
            else:
                breaker.probe_succeeded()
        except JournalError as error:
            breaker.give_up(breaker.kind, str(error))
        except Exception as error:  # a mistake of ours; were the asking to end, all would wait on
            log.exception("judge %s: the canary raised", self._judge)
            self._failed(FaultKind.TRANSIENT, repr(error))
        else:
            breaker.probe_succeeded()

    def _failed(self, kind: FaultKind, detail: str) -> None:
        breaker = self._breaker
        breaker.probe_failed(time.monotonic(), kind, detail)
        if breaker.state is BreakerState.GIVEN_UP:
            breaker.reason = (
                f"the judge at {self._judge} stayed away for longer than "
                f"judge.breaker_patience_s ({self._patience_s:g} s): {detail}"
            )


def is_outage(fault: JudgeFault) -> bool:
    """Whether a canary that ended so means that the judge is still away."""
    alive = (FaultKind.TRUNCATED, FaultKind.REFUSAL, FaultKind.INVALID, FaultKind.INCONSISTENT)
    return fault.kind not in alive
