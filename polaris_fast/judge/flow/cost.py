"""Dollars: a call is sent only if even its dearest outcome stays within the budget.

Before a call its upper bound is set aside, after it the true cost is booked and the rest is free
again. What is spent therefore never passes the budget, given that the bound is one.
"""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    """What to do with a call."""

    GO = "go"
    WAIT = "wait"  # calls under way have set money aside; part of it may come back
    STOP = "stop"  # the budget cannot pay for this call


class CostBudget:
    """Spent and set aside, in USD."""

    def __init__(self, limit_usd: float | None, spent_usd: float = 0.0) -> None:
        """
        Args:
            limit_usd: None only counts.
            spent_usd: what was spent before.
        """
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self._aside_usd = 0.0
        self._num_aside = 0

    def reserve(self, bound_usd: float) -> Verdict:
        """Set `bound_usd` aside on GO; to be followed by `settle` with the same bound."""
        if self.limit_usd is not None:
            if self.spent_usd + bound_usd > self.limit_usd:
                return Verdict.STOP
            if self.spent_usd + self._aside_usd + bound_usd > self.limit_usd:
                return Verdict.WAIT
        self._aside_usd += bound_usd
        self._num_aside += 1
        return Verdict.GO

    def settle(self, bound_usd: float, cost_usd: float) -> None:
        """The call is over: free what was set aside, book what it cost."""
        self._num_aside -= 1
        self._aside_usd = (
            self._aside_usd - bound_usd if self._num_aside else 0.0
        )  # no rounding left
        self.spent_usd += cost_usd

    def message(self, bound_usd: float) -> str:
        """Why a call was stopped, and what to do."""
        return (
            f"judge.max_cost_usd: {self.spent_usd:.4f} of {self.limit_usd} USD are spent, and the "
            f"next call may cost {bound_usd:.4f}; raise it to go on"
        )
