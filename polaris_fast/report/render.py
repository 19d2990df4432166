"""Puts the page together: reads the run folder, renders the template, writes one file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from ..types import UserError
from .attention import judge_caption, notices
from .folder import RunFolder, read_run
from .stories import pick_steps
from .verdict import judge_run

REPORT_FILE = "report.html"
HERE = Path(__file__).parent


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run folder: one file, no network, no script; returns its path.

    Works on a run that is still going on, was killed, or lacks any of its files.

    Raises:
        UserError: the folder is no run, or the page cannot be written.
    """
    run = read_run(run_dir)
    path = run.path / REPORT_FILE
    page = render(run)
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        # A sampled text may hold half of a surrogate pair, which UTF-8 cannot say.
        fresh.write_bytes(page.encode("utf-8", errors="replace"))
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); the run itself is safe: make room or "
            "permit writing, then `python -m polaris_fast.report` and the run folder"
        ) from error
    return path


def render(run: RunFolder) -> str:
    """The page as text."""
    from . import charts  # here, because matplotlib takes half a second to import

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_filters(charts.number))
    page = environment.get_template("page.html.j2").render(
        run=run,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        facts=_facts(run),
        verdict=judge_run(run),
        caption=judge_caption(run),
        notices=notices(run),
        sections=charts.draw_sections(run),
        lengths=charts.draw_lengths(run),
        warm_start=charts.draw_warm_start(run),
        story_steps=pick_steps(run),
        judge=_judge_table(run, charts.number),
        dimensions=_table(run, "judge/dim/", charts.number),
        everything=_table(run, "", charts.number),
    )
    return page.lstrip()  # the macros' own lines come before the doctype


def _filters(number: Callable[..., str]) -> dict[str, Callable[..., Any]]:
    return {
        "number": lambda value: number(float(value)),
        "signed": lambda value: _minus(f"{value:+.2f}"),
        "two": lambda value: _minus(f"{value:.2f}"),
        "svg": Markup,
    }


def _minus(text: str) -> str:
    """A typographic minus, and none before a zero."""
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


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


def _judge_table(run: RunFolder, number: Callable[[float], str]) -> list[dict[str, str]]:
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
