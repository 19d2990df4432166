"""Requests and tokens a minute: an estimate is taken before a call and corrected after it.

A bucket refills evenly and holds one second's worth, so that no minute, wherever it begins, sees
more than the limit and a sixtieth. It may go into debt: the next call waits until it is paid off.
"""

from __future__ import annotations

BURST_S = 1.0


class Bucket:
    """A token bucket with debt; `now` is any clock in seconds."""

    def __init__(self, per_minute: float, now: float) -> None:
        """A full bucket. ValueError unless `per_minute` is positive."""
        if per_minute <= 0:
            raise ValueError(f"Bucket: per_minute must be positive, got {per_minute}")
        self._rate_per_s = per_minute / 60.0
        self._capacity = max(1.0, BURST_S * self._rate_per_s)
        self._level = self._capacity
        self._at = now

    def take(self, amount: float, now: float) -> float:
        """Take `amount`, in advance if need be; returns how many seconds to wait before using it.

        Waits follow the order of the calls. An amount larger than the bucket waits until the
        bucket is full.
        """
        self._refill(now)
        missing = min(amount, self._capacity) - self._level
        self._level -= amount
        return max(0.0, missing / self._rate_per_s)

    def correct(self, estimate: float, actual: float) -> None:
        """After the call: give back what was taken too much, or take what was taken too little."""
        self._level = min(self._capacity, self._level + estimate - actual)

    def _refill(self, now: float) -> None:
        self._level = min(self._capacity, self._level + (now - self._at) * self._rate_per_s)
        self._at = now
