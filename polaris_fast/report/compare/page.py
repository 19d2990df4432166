"""Puts the comparison together and writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...types import UserError
from ..attention import Notice, judge_caption, notices
from ..template import fill_template, write_page
from .runs import Named, read_runs

COMPARISON_FILE = "comparison.html"


def write_comparison(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one page about two to six runs: one file, no network, no script; returns its path.

    Args:
        out: the file; by default `comparison.html` beside the first run's folder.

    Raises:
        UserError: fewer than two runs, a folder that is no run, or the page cannot be written.
    """
    if len(folders) < 2:
        raise UserError("report: a comparison needs two or more run folders; give another")
    runs = read_runs(folders)
    path = Path(out) if out is not None else runs[0].run.path.resolve().parent / COMPARISON_FILE
    if not path.parent.is_dir():
        raise UserError(f"--out: no such folder {str(path.parent)!r}; make it first")
    write_page(render(runs), path)
    return path


def render(runs: Sequence[Named]) -> str:
    """The page as text."""
    from .curves import draw_overlays  # here, because matplotlib takes half a second to import
    from .stories import same_prompts
    from .tables import differing_settings, final_table

    return fill_template(
        "comparison.html.j2",
        runs=runs,
        notices=[*_comparable(runs), *_warnings(runs)],
        final=final_table(runs),
        settings=differing_settings(runs),
        sections=draw_overlays(runs),
        pairs=same_prompts(runs),
    )


def _comparable(runs: Sequence[Named]) -> list[Notice]:
    """What makes the numbers of these runs no fair comparison."""
    from .tables import share_held_out

    found = []
    judges = {(r.run.setting("judge.base_url"), r.run.setting("judge.model")) for r in runs}
    if len(judges) > 1:
        text = "The runs had different judges: rewards and quality are not on one scale."
        found.append(Notice("warn", text))
    rewards = {str(r.run.setting("reward")) for r in runs}
    if len(rewards) > 1:
        text = "The runs had different reward settings: compare their parts, not the rewards."
        found.append(Notice("warn", text))
    lengths = [len(r.run.rows) for r in runs]
    if len(set(lengths)) > 1:
        counted = ", ".join(f"{r.name} {n:,}" for r, n in zip(runs, lengths, strict=True))
        found.append(Notice("note", f"The runs have different numbers of steps: {counted}."))
    if not share_held_out(runs):
        text = (
            "The runs were evaluated on different held-out prompts: those numbers are each run's "
            "own, and none is marked."
        )
        found.append(Notice("warn", text))
    captions = {caption for r in runs if (caption := judge_caption(r.run)) is not None}
    return found + [Notice("note", caption) for caption in sorted(captions)]


def _warnings(runs: Sequence[Named]) -> list[Notice]:
    return [
        Notice("warn", f"{named.name}: {notice.text}")
        for named in runs
        for notice in notices(named.run)
        if notice.level == "warn"
    ]
