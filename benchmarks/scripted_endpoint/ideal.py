"""How soon a scheduler that knew every latency and fault in advance could be done."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from .script import Attempt


def ideal_seconds(
    chains: Sequence[Sequence[Attempt]], *, concurrency: int, timeout_s: float
) -> float:
    """Makespan in seconds of list scheduling, the longest remaining chain first.

    A chain's attempts follow one another; a throttled one waits for what the endpoint asks,
    without holding a slot; a hang holds its slot for the client's limit. Nothing else costs time.

    Args:
        chains: the attempts of each story up to its judgement, see `Script.until_scored`.
        concurrency: requests in flight at most.
        timeout_s: the client's limit on one try.
    """
    rest = [_suffixes(chain, timeout_s) for chain in chains]
    ready = [(-rest[i][0], i, 0) for i in range(len(chains))]  # longest remaining first
    heapq.heapify(ready)
    events: list[tuple[float, int, int, bool]] = []  # (when, chain, position, holds a slot)
    free, now = concurrency, 0.0
    while ready or events:
        while ready and free:
            _, chain, position = heapq.heappop(ready)
            attempt = chains[chain][position]
            free -= 1
            heapq.heappush(events, (now + _held_s(attempt, timeout_s), chain, position, True))
        now, chain, position, held = heapq.heappop(events)
        wait_s = chains[chain][position].retry_after_s if held else 0.0
        free += held
        if position + 1 == len(chains[chain]):
            continue
        if wait_s > 0:
            heapq.heappush(events, (now + wait_s, chain, position, False))
        else:
            heapq.heappush(ready, (-rest[chain][position + 1], chain, position + 1))
    return now


def _held_s(attempt: Attempt, timeout_s: float) -> float:
    return timeout_s if attempt.fault == "timeout" else min(attempt.latency_s, timeout_s)


def _suffixes(chain: Sequence[Attempt], timeout_s: float) -> list[float]:
    """Seconds from the start of each attempt to the end of the chain."""
    left, sums = 0.0, []
    for attempt in reversed(chain):
        left += _held_s(attempt, timeout_s) + attempt.retry_after_s
        sums.append(left)
    return sums[::-1]
