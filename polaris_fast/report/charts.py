"""Draws the charts of the catalogue, and words against targets."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from .catalogue import INVALID, REST, SECTIONS, Chart, Line
from .drawing import (
    MIN_SMOOTH,
    draw_curve,
    draw_level,
    latest,
    new_axes,
    set_limits,
    step_axis,
    thin,
    tick_text,
)
from .folder import RunFolder, column
from .stories import length_error, policy_rows
from .svg import COLOURS, page_style, to_svg


@dataclass(frozen=True)
class Legend:
    """A key of the legend with the latest value."""

    name: str
    colour: str
    latest: str
    dashed: bool = False


@dataclass(frozen=True)
class Drawn:
    """A chart, ready for the page. One curve needs no legend: its latest value is `latest`."""

    title: str
    caption: str
    svg: str
    latest: str = ""
    legend: list[Legend] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """A heading with its charts."""

    slug: str
    title: str
    charts: list[Drawn]


def draw_sections(run: RunFolder) -> list[Section]:
    """Every section that has at least one chart with numbers."""
    found = []
    rows = [_with_invalid(_with_rest(row)) for row in run.rows]
    with page_style():
        for slug, title, charts in SECTIONS:
            drawn = [figure for chart in charts if (figure := _draw(rows, chart)) is not None]
            if drawn:
                found.append(Section(slug, title, drawn))
    return found


def draw_warm_start(run: RunFolder) -> Drawn | None:
    """The supervised loss before the first step, for the embedded model."""
    chart = Chart(
        "warm-start",
        "Warm start",
        "Supervised loss of the embedded model before the first step, in nats a token.",
        (Line("loss", "loss", "slate", raw=True),),
    )
    with page_style():
        return _draw(run.warm_start, chart)


def draw_lengths(run: RunFolder) -> list[Drawn]:
    """Words against target: first step, last step, held-out prompts at the end, on equal axes."""
    files = list(run.story_files)
    named = {f"Step {step}": run.stories(step) for step in sorted({*files[:1], *files[-1:]})}
    named["Held out, at the end"] = run.evals.get("end", {}).get("stories") or []
    clouds = {name: cloud for name, rows in named.items() if (cloud := _cloud(rows))}
    if not clouds:
        return []
    xs, ys, _ = zip(*(point for cloud in clouds.values() for point in cloud), strict=True)
    with page_style():
        return [_scatter(name, cloud, xs, ys) for name, cloud in clouds.items()]


def _with_rest(row: dict[str, Any]) -> dict[str, Any]:
    """The row with `REST`, so that the stack is as high as the step whatever phases were named."""
    whole = row.get("perf/step_s")
    if not isinstance(whole, int | float):
        return row
    names = ("perf/rollout_s", "perf/judge_exposed_s", "perf/train_s", "perf/optimizer_s")
    return {**row, REST: max(0.0, whole - sum(row.get(name) or 0.0 for name in names))}


def _with_invalid(row: dict[str, Any]) -> dict[str, Any]:
    """The row with `INVALID`, where any such answer was counted."""
    counts = [row.get(f"judge/faults/{name}") for name in ("invalid", "inconsistent")]
    known = [count for count in counts if isinstance(count, int | float)]
    return {**row, INVALID: sum(known)} if known else row


def _draw(rows: list[dict[str, Any]], chart: Chart) -> Drawn | None:
    found = [(line, column(rows, line.key)) for line in chart.lines]
    found = [(line, values) for line, values in found if np.isfinite(values).any()]
    if not found:
        return None
    if chart.slug == "clip" and not any(np.nansum(values) for _, values in found):
        return None  # one update a batch: the ratio is 1 and nothing can clip
    if chart.slug == "lr" and np.unique(found[0][1][np.isfinite(found[0][1])]).size == 1:
        return None  # a constant is in the configuration
    if chart.slug == "cost" and not any(np.nansum(values) for _, values in found):
        return None  # prices are unknown, or the judge is free
    steps = thin(column(rows, "step"))
    figure, axes = new_axes(chart.percent)
    if chart.stacked:
        _stack(axes, steps, found)
    else:
        for line, values in found:
            draw_curve(axes, steps, thin(values), line)
    if chart.marks is not None:
        _crosses(axes, column(rows, "step"), found[0][1], column(rows, chart.marks))
    if chart.level is not None:
        draw_level(axes, *chart.level)
    set_limits(axes, chart)
    step_axis(axes, steps)
    legend = [
        Legend(line.name, line.colour, latest(values, chart.percent), line.dashed)
        for line, values in found
    ]
    svg = to_svg(figure, chart.slug, f"{chart.title} over the steps")
    if len(chart.lines) == 1:
        return Drawn(chart.title, chart.caption, svg, latest=legend[0].latest)
    return Drawn(chart.title, chart.caption, svg, legend=legend)


def _crosses(axes: Axes, x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> None:
    hit = np.nan_to_num(counts) > 0
    height = np.nan_to_num(y[hit])  # a skipped update may have no finite value to sit on
    axes.plot(x[hit], height, "x", color=COLOURS["rose"], markersize=5.5, markeredgewidth=1.6)


def _stack(axes: Axes, x: np.ndarray, found: Sequence[tuple[Line, np.ndarray]]) -> None:
    layers = [np.nan_to_num(thin(values)) for _, values in found]
    colours = [COLOURS[line.colour] for line, _ in found]
    if len(x) < MIN_SMOOTH:
        base = np.zeros_like(x)
        for layer, colour in zip(layers, colours, strict=True):
            axes.bar(x, layer, bottom=base, width=0.62, color=colour, alpha=0.85, linewidth=0)
            base = base + layer
    else:
        axes.stackplot(x, layers, colors=colours, alpha=0.85, linewidth=0)


def _cloud(rows: list[dict[str, Any]]) -> list[tuple[float, float, float]]:
    """(target, words, |ln(words / target)|) of the model's scored stories; empty ones have a word,
    which a logarithmic axis can show."""
    return [
        (float(row["target_word_count"]), max(1.0, row["reward"]["words"]), error)
        for row in policy_rows(rows)
        if (error := length_error(row)) is not None
    ]


def _scatter(
    name: str,
    cloud: Sequence[tuple[float, float, float]],
    all_targets: Sequence[float],
    all_words: Sequence[float],
) -> Drawn:
    figure, axes = new_axes(percent=False)
    low, high = min(*all_targets, *all_words) / 1.2, max(*all_targets, *all_words) * 1.2
    line = np.array([low, high])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.fill_between(line, line / 1.2, line * 1.2, color=COLOURS["teal"], alpha=0.14, linewidth=0)
    axes.plot(line, line, color=COLOURS["teal"], linewidth=1)
    targets, words, errors = (np.array(values) for values in zip(*cloud, strict=True))
    axes.scatter(targets, words, s=13, color=COLOURS["blue"], alpha=0.5, linewidth=0)
    axes.set_xlim(min(all_targets) / 1.25, max(all_targets) * 1.25)
    axes.set_ylim(low, high)
    for axis in (axes.xaxis, axes.yaxis):
        bounds = axes.get_xlim() if axis is axes.xaxis else axes.get_ylim()
        axis.set_ticks(_log_ticks(*bounds))
        axis.set_ticks([], minor=True)
        axis.set_major_formatter(FuncFormatter(lambda v, _: tick_text(v, False)))
    hits = 100 * float((errors <= math.log(1.2)).mean())
    caption = (
        f"{len(cloud)} stories: mean |ln| {errors.mean():.2f}, {hits:.0f} % within 20 % (the band)."
    )
    slug = "lengths-" + re.sub(r"\W+", "-", name.lower())
    svg = to_svg(figure, slug, f"Words written against words asked for, {name}")
    return Drawn(name, caption, svg)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten; every one of them when the range is narrow."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    heads = (1, 2, 5) if high / low > 6 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    return [head * 10.0**p for p in powers for head in heads if low <= head * 10.0**p <= high]
