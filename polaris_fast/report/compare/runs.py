"""The runs of a comparison: each with a name of its own and a colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...types import UserError
from ..folder import RunFolder, read_run

# Ordered so that neighbours differ in hue and lightness.
PALETTE = ("blue", "amber", "teal", "rose", "violet", "slate")


@dataclass(frozen=True)
class Named:
    """A run under the name that the page gives it; `colour` is a name of the page's palette."""

    name: str
    colour: str
    run: RunFolder


def read_runs(folders: Sequence[str | Path]) -> list[Named]:
    """Read the folders in the order given.

    Raises:
        UserError: one is no run, one is given twice, or there are more than the page can colour.
    """
    if len(folders) > len(PALETTE):
        raise UserError(
            f"report: {len(folders)} runs were given, a page holds {len(PALETTE)}; compare fewer"
        )
    runs = [read_run(folder) for folder in folders]
    twice = [n for n, count in Counter(r.path.resolve() for r in runs).items() if count > 1]
    if twice:
        raise UserError(f"report: the run {str(twice[0])!r} was given twice; give each once")
    return [
        Named(name, colour, run)
        for name, colour, run in zip(_names(runs), PALETTE, runs, strict=False)
    ]


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """Configured names where they tell the runs apart; else folders, as long as they must be."""
    names = [run.name for run in runs]
    depth = 1
    while len(set(names)) < len(names):
        names = ["/".join(run.path.resolve().parts[-depth:]) for run in runs]
        depth += 1
    return names
