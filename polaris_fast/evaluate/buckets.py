"""Buckets of requested length: the paper's for stories of 1-12K words, thirds for short ones."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..types import UserError

PAPER_EDGES = (1000, 4000, 8000, 12000)
FEW_LENGTHS = 4  # up to so many lengths are buckets of their own


@dataclass(frozen=True)
class Buckets:
    """Ranges of target words: [edge 0, edge 1), ..., the last one with its upper edge.

    Targets outside fall into an open bucket below or above.
    """

    edges: tuple[int, ...]
    each_length: bool = False  # ranges of one length are buckets, what lies between is none

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False))
        if len(self.edges) < 2 or not rising or self.edges[0] < 0:
            raise UserError(
                f"--buckets: must be at least two rising numbers of words, got "
                f"{','.join(map(str, self.edges)) or 'nothing'}; give such as 1000,4000,8000,12000"
            )

    def number(self, target: int) -> int:
        """Place of the target's bucket among all, filled or not: 0 from the first edge on."""
        if target < self.edges[0]:
            return -1
        if target > self.edges[-1]:
            return self._num_buckets(len(self.edges))
        place = min(bisect_right(self.edges, target), len(self.edges) - 1)
        return self._num_buckets(place)

    def _num_buckets(self, place: int) -> int:
        """Buckets that end at or below the edge before `place`."""
        ranges = pairwise(self.edges[:place])
        return sum(not self.each_length or high == low + 1 for low, high in ranges)

    def label(self, target: int) -> str:
        """Name of the target's bucket, such as `4-8K`."""
        if target < self.edges[0]:
            return f"<{_short(self.edges[0])}"
        if target > self.edges[-1]:
            return f">{_short(self.edges[-1])}"
        place = min(bisect_right(self.edges, target), len(self.edges) - 1)
        return _range(self.edges[place - 1], self.edges[place])

    def labels(self, targets: Sequence[int]) -> list[str]:
        """The buckets that these targets fill, shortest first."""
        return list(dict.fromkeys(self.label(target) for target in sorted(targets)))

    @property
    def are_the_papers(self) -> bool:
        """Whether the reference rows have the same buckets."""
        return self.edges == PAPER_EDGES


def choose_buckets(targets: Sequence[int], edges: Sequence[int] | None = None) -> Buckets:
    """Buckets by these edges; None: the paper's where most targets lie in them, else thirds, or
    one for each of a few lengths.

    Args:
        targets: words asked for, at least one.
        edges: of `--buckets`.

    Raises:
        UserError: edges that do not rise.
    """
    if edges is not None:
        return Buckets(tuple(edges))
    inside = sum(PAPER_EDGES[0] <= t <= PAPER_EDGES[-1] for t in targets)
    if 2 * inside >= len(targets):
        return Buckets(PAPER_EDGES)
    lengths = sorted(set(targets))
    if len(lengths) <= FEW_LENGTHS:
        return Buckets(tuple(sorted({edge for n in lengths for edge in (n, n + 1)})), True)
    ordered = sorted(targets)
    thirds = [ordered[len(ordered) * i // 3] for i in range(3)]
    return Buckets(tuple(sorted({*thirds, ordered[-1]})))


def _range(low: int, high: int) -> str:
    if high == low + 1:
        return str(low)
    if low % 1000 == 0 and high % 1000 == 0:
        return f"{low // 1000}-{high // 1000}K"
    return f"{low}-{high}"


def _short(words: int) -> str:
    return f"{words // 1000}K" if words and words % 1000 == 0 else str(words)
