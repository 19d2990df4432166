"""Puts the page together: reads the run folder, renders the template, writes one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .attention import judge_caption, notices
from .folder import RunFolder, read_run
from .stories import pick_steps
from .template import fill_template, write_page
from .verdict import judge_run

REPORT_FILE = "report.html"


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run folder: one file, no network, no script; returns its path.

    Works on a run that is still going on, was killed, or lacks any of its files.

    Raises:
        UserError: the folder is no run, or the page cannot be written.
    """
    run = read_run(run_dir)
    path = run.path / REPORT_FILE
    write_page(render(run), path)
    return path


def render(run: RunFolder) -> str:
    """The page as text."""
    from . import charts  # here, because matplotlib takes half a second to import
    from .drawing import number

    return fill_template(
        "page.html.j2",
        run=run,
        facts=_facts(run),
        verdict=judge_run(run),
        caption=judge_caption(run),
        notices=notices(run),
        sections=charts.draw_sections(run),
        lengths=charts.draw_lengths(run),
        warm_start=charts.draw_warm_start(run),
        story_steps=pick_steps(run),
        judge=_result_table(run, number),
        dimensions=_table(run, "judge/dim/", number),
        everything=_table(run, "", number),
    )


def _facts(run: RunFolder) -> list[str]:
    """The line under the title."""
    model = run.setting("model_name_or_path") or "embedded tiny model"
    facts = [str(model)] if run.config else []
    device = run.summary.get("device") or run.setting("device", "auto")
    if device != "auto":
        facts.append(f"device {device}")
    last, planned = (run.rows[-1]["step"] if run.rows else 0), run.setting("max_steps", -1)
    unfinished = isinstance(planned, int) and planned > last
    facts.append(
        f"{last} of {planned} steps" if unfinished else f"{last} step{'' if last == 1 else 's'}"
    )
    wall = run.summary.get("wall_s")
    if isinstance(wall, int | float):
        facts.append(_duration(wall))
    if run.setting("seed") is not None:
        facts.append(f"seed {run.setting('seed')}")
    return facts


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minute} min"
    return f"{minute} min {second} s" if minute else f"{second} s"


def _result_table(run: RunFolder, number: Callable[[float], str]) -> list[dict[str, str]]:
    """Health of the judge, counts of jobs first; the rubric's dimensions have their own table."""
    first = ("submitted", "scored", "failed", "rejected", "retries")
    rows = [r for r in _table(run, "judge/", number) if not r["name"].startswith("dim/")]
    rank = {name: place for place, name in enumerate(first)}
    return sorted(rows, key=lambda row: (rank.get(row["name"], len(rank)), row["name"]))


def _table(run: RunFolder, prefix: str, number: Callable[[float], str]) -> list[dict[str, str]]:
    """Every metric with this prefix, as text: ends, extremes and, for counts, the total."""
    keys = sorted({key for row in run.rows for key in row if key.startswith(prefix)} - {"step"})
    table = []
    for key in keys:
        values = run.series(key)
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        counts = bool((values == values.round()).all())
        text = (lambda value: f"{value:,.0f}") if counts else number
        table.append(
            {
                "name": key.removeprefix(prefix),
                "first": text(values[0]),
                "last": text(values[-1]),
                "mean": number(values.mean()),
                "low": text(values.min()),
                "high": text(values.max()),
                "total": text(values.sum()) if counts else "",
            }
        )
    return table
