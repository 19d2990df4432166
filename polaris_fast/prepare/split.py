"""Training and test stories: whole components of what belongs together, never a part of one.

Stories are tied by any of their authors, by source (the book, or the folder of files that name
none), and by text in common; a component goes to one side. Which one follows from hashes alone, so
the order of files changes nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .bins import ALL_BINS, BINS
from .headings import title_key
from .names import name_keys

TIES = ("author", "source")


@dataclass(frozen=True, slots=True)
class Item:
    """What the split needs to know of a story."""

    number: int
    uid: str
    author: str
    source: str
    bin: str
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Quota:
    """How many test stories: a share of each bin, or counts of the bins of the recipe."""

    share: float = 0.1
    counts: tuple[int, ...] | None = None

    def of(self, items: Sequence[Item]) -> dict[str, int]:
        """Stories wanted in each bin."""
        if self.counts is not None:
            return dict(zip(BINS, self.counts, strict=True))
        have = Counter(item.bin for item in items)
        return {name: round(self.share * have[name]) for name in ALL_BINS if have[name]}


@dataclass(frozen=True, slots=True)
class Split:
    """Numbers of the test stories, and what stood in the way."""

    test: frozenset[int]
    wanted: dict[str, int]
    got: dict[str, int]
    num_components: int
    largest: int  # stories in the largest component
    problem: str = ""  # for people; "" when the quota is met


def split_items(
    items: Sequence[Item],
    ties: Sequence[str],
    related: Iterable[tuple[int, int]],
    quota: Quota,
) -> Split:
    """Choose the test stories: components in the order of their hashes, each one that brings the
    counts of the bins closer to what is wanted.

    Args:
        ties: "author", "source", both, or none.
        related: pairs of stories (by number) with text in common; always tied.
    """
    groups = sorted(_components(items, ties, related), key=_order)
    wanted = quota.of(items)
    if not any(wanted.values()) and quota.share > 0 and quota.counts is None and len(items) > 1:
        wanted = {Counter(item.bin for item in items).most_common(1)[0][0]: 1}
    got: Counter[str] = Counter()
    test: set[int] = set()
    for group in groups:
        more = got + Counter(item.bin for item in group)
        if _distance(more, wanted) < _distance(got, wanted):
            got = more
            test |= {item.number for item in group}
    if not test and any(wanted.values()):
        test, got = _smallest(groups, len(items))
    largest = max(map(len, groups), default=0)
    problem = _problem(wanted, got, groups, len(items), ties)
    return Split(frozenset(test), wanted, dict(got), len(groups), largest, problem)


def _distance(got: Mapping[str, int], wanted: Mapping[str, int]) -> int:
    """Stories too few and too many, over all bins."""
    return sum(abs(got.get(name, 0) - wanted.get(name, 0)) for name in {*got, *wanted})


def _smallest(groups: Sequence[Sequence[Item]], total: int) -> tuple[set[int], Counter[str]]:
    """Every component is larger than the quota: the smallest, where it leaves most to train on."""
    group = min(groups, key=len, default=())
    if len(groups) < 2 or 3 * len(group) > total:
        return set(), Counter()
    return {item.number for item in group}, Counter(item.bin for item in group)


def _problem(
    wanted: dict[str, int],
    got: Counter[str],
    groups: Sequence[Sequence[Item]],
    total: int,
    ties: Sequence[str],
) -> str:
    missing = {name: n - got[name] for name, n in wanted.items() if got[name] < n}
    # A few short are the price of whole components; a tenth of them or more is worth a word.
    if not missing or (got and 10 * sum(missing.values()) < sum(wanted.values())):
        return ""
    largest = max(map(len, groups))
    tied = " and ".join(ties) or "common text"
    remedy = "give more sources" if not ties else _remedy(ties)
    if not got:
        return (
            f"no test split: {largest} of {total} stories are tied by {tied} and cannot be "
            f"divided without a leak (components in all: {len(groups)}); {remedy}"
        )
    short = ", ".join(f"{n} of {wanted[name]} in {name}" for name, n in missing.items())
    return f"the test split is short of {short}: components by {tied} are kept whole; {remedy}"


def _remedy(ties: Sequence[str]) -> str:
    if len(ties) == 2:
        return "give more books, or loosen the rule with --split-by author or --split-by source"
    other = "author" if ties[0] == "source" else "source"
    return f"give more books, or loosen the rule with --split-by {other} or --split-by story"


def _components(
    items: Sequence[Item], ties: Sequence[str], related: Iterable[tuple[int, int]]
) -> list[list[Item]]:
    parent = {item.number: item.number for item in items}

    def find(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    first: dict[tuple[str, str], int] = {}
    for item in items:
        for tie in ties:
            for key in _keys(item, tie):
                other = first.setdefault(key, item.number)
                parent[find(item.number)] = find(other)
    for a, b in related:
        if a in parent and b in parent:
            parent[find(a)] = find(b)
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(find(item.number), []).append(item)
    return list(groups.values())


def _keys(item: Item, tie: str) -> Iterable[tuple[str, str]]:
    """What a story has in common with those it is tied to; an unknown author ties nothing."""
    if tie == "author":
        yield from (("author", key) for key in name_keys(item.author))
        return
    if key := title_key(item.source):
        yield "source", key
    if item.folder:
        yield "folder", item.folder


def _order(group: Sequence[Item]) -> str:
    return hashlib.sha256(min(item.uid for item in group).encode()).hexdigest()
