"""What the endpoint did, kept on its side of the wire: the witness for what a client claims."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StoryAccount:
    """The calls for one story."""

    calls: int = 0  # everything that arrived, throttled calls included
    attempts: int = 0  # calls that the script answered
    paid: int = 0  # answers with tokens
    judgements: int = 0  # of these, valid ones
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LedgerSummary:
    """Sums over all stories."""

    calls: int
    stories: int
    paid: int  # answers with tokens, truncated, invalid and refused ones included
    judgements: int  # valid answers
    repeated_judgements: int  # valid answers beyond the first of a story
    faults: dict[str, int]  # by class of the script
    variants: dict[str, int]  # by shape
    turned_away: dict[str, int]  # "concurrency" and "rate": over the endpoint's own limits
    gone: int  # clients that had left before the answer was written
    most_in_flight: int


class Ledger:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stories: dict[str, StoryAccount] = {}
        self._faults: Counter[str] = Counter()
        self._variants: Counter[str] = Counter()
        self._turned_away: Counter[str] = Counter()
        self._gone = 0
        self.in_flight = 0
        self.most_in_flight = 0

    def arrived(self, story: str) -> None:
        """A request for the story of this hash."""
        with self._lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self._account(story).calls += 1

    def left(self) -> None:
        """A request is over, however it ended."""
        with self._lock:
            self.in_flight -= 1

    def next_attempt(self, story: str) -> int:
        """The number of this attempt at the story, from 0."""
        with self._lock:
            account = self._account(story)
            account.attempts += 1
            return account.attempts - 1

    def turned_away(self, why: str) -> None:
        """A request over the endpoint's limits."""
        with self._lock:
            self._turned_away[why] += 1

    def ended(self, story: str, *, fault: str, variant: str, paid: bool, gone: bool) -> None:
        """An attempt was answered, or its client had `gone`; `fault` is "" for a judgement."""
        with self._lock:
            account = self._account(story)
            account.paid += paid
            account.judgements += paid and not fault
            self._variants[variant] += 1
            self._gone += gone
            if fault:
                account.faults.append(fault)
                self._faults[fault] += 1

    def summary(self) -> LedgerSummary:
        """Sums as they are now."""
        with self._lock:
            accounts = self._stories.values()
            return LedgerSummary(
                calls=sum(a.calls for a in accounts),
                stories=len(accounts),
                paid=sum(a.paid for a in accounts),
                judgements=sum(a.judgements for a in accounts),
                repeated_judgements=sum(max(0, a.judgements - 1) for a in accounts),
                faults=dict(self._faults),
                variants=dict(self._variants),
                turned_away=dict(self._turned_away),
                gone=self._gone,
                most_in_flight=self.most_in_flight,
            )

    def by_story(self) -> dict[str, dict[str, Any]]:
        """Each story's account by `script.story_hash`."""
        with self._lock:
            return {story: vars(a) | {"faults": [*a.faults]} for story, a in self._stories.items()}

    def _account(self, story: str) -> StoryAccount:
        return self._stories.setdefault(story, StoryAccount())
