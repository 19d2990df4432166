"""One judge for all rows of a group: scores of different judges must not meet in one baseline.

A group starts with the main judge. When that refuses one of its rows for good and there is a
fallback, the group moves: rows still to come go to the fallback, and rows that were scored before
are outdated; whoever collects the group submits them again (`outdated` names them). The same holds
for the judge's snapshot, the model string it returns: a change within a group is counted and
flagged, because a provider that swaps models shifts the scale in the middle of a comparison.

A fallback that is given up serves nobody: groups that had moved go back, none moves any more, and
a refused row alone is lost.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum

REMEMBERED = 4096  # groups


class Tier(StrEnum):
    """Which judge serves a group."""

    MAIN = "main"
    FALLBACK = "fallback"


@dataclass(slots=True)
class _Group:
    tier: Tier = Tier.MAIN
    scored_by: dict[str, Tier] = field(default_factory=dict)  # by job id
    snapshot: str | None = None


class GroupPanel:
    """Thread-safe: the loop writes, the trainer reads."""

    def __init__(self, *, has_fallback: bool) -> None:
        self._has_fallback = has_fallback
        self._lock = threading.Lock()
        self._groups: OrderedDict[str, _Group] = OrderedDict()

    def assign(self, group: str | None, job_id: str) -> Tier:
        """The judge that serves this job now; an earlier score of it no longer counts."""
        if group is None:
            return Tier.MAIN
        with self._lock:
            entry = self._get(group)
            entry.scored_by.pop(job_id, None)
            return entry.tier

    def refused(self, group: str | None) -> bool:
        """The main judge refuses a row for good: the group moves; False: it has nowhere to go."""
        if self._has_fallback and group is not None:
            with self._lock:
                entry = self._get(group)
                if entry.tier is Tier.MAIN:
                    entry.tier, entry.snapshot = Tier.FALLBACK, None
        return self._has_fallback

    def lose_fallback(self) -> None:
        """The fallback was given up: its groups are the main judge's again, and stay there."""
        with self._lock:
            self._has_fallback = False
            for entry in self._groups.values():
                if entry.tier is Tier.FALLBACK:
                    entry.tier, entry.snapshot = Tier.MAIN, None

    def scored(self, group: str | None, job_id: str, tier: Tier, snapshot: str) -> bool:
        """A row was scored; True when its snapshot differs from the group's by the same judge."""
        if group is None:
            return False
        with self._lock:
            entry = self._get(group)
            entry.scored_by[job_id] = tier
            if tier is not entry.tier:
                return False
            if entry.snapshot is None:
                entry.snapshot = snapshot
            return entry.snapshot != snapshot

    def outdated(self, group: str) -> frozenset[str]:
        """Ids of the jobs that were scored by a judge that no longer serves the group."""
        with self._lock:
            entry = self._groups.get(group)
            if entry is None:
                return frozenset()
            return frozenset(i for i, tier in entry.scored_by.items() if tier is not entry.tier)

    def _get(self, group: str) -> _Group:
        if group not in self._groups:
            self._groups[group] = _Group()
            if len(self._groups) > REMEMBERED:
                self._groups.popitem(last=False)
        return self._groups[group]
