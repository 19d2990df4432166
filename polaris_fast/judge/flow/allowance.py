"""Extra calls as a share of first ones: the retry budget, and the one of hedges.

Each first call earns a part of an extra call; each extra call spends a whole one. The account
starts with a few, so that a short run may retry at all, and holds no more than what a thousand
calls earn, so that a good hour does not pay for a storm of retries.
"""

from __future__ import annotations

MEMORY = 1000  # first calls whose earnings are kept


class Allowance:
    """Counts what may be spent; knows no time."""

    def __init__(self, share: float, *, start: float) -> None:
        """
        Args:
            share: extra calls earned by each first call; 0 allows none at all.
            start: extra calls in the account at first, and the least that it can hold.
        """
        self._share = share
        self._limit = max(start, share * MEMORY) if share > 0 else 0.0
        self._left = min(start, self._limit)

    def earn(self) -> None:
        """A first call is made."""
        self._left = min(self._limit, self._left + self._share)

    def spend(self) -> bool:
        """Spend one extra call if there is one."""
        if self._left < 1.0 - 1e-9:  # five times 0.2 is one
            return False
        self._left -= 1.0
        return True

    @property
    def left(self) -> float:
        """Extra calls that may be made now."""
        return self._left
