"""Draws the charts of the catalogue, and words against targets."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .catalogue import INVALID, REST, SECTIONS, Chart, Line
from .folder import RunFolder, column
from .stories import log_ratio, policy_rows
from .svg import COLOURS, FONT_PT, HEIGHT_IN, WIDTH_IN, page_style, to_svg

MAX_POINTS = 400  # more steps than this are averaged in bins: the page has no more pixels
MIN_SMOOTH = 8  # below this many points the raw values are the curve


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


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a tenth of the run, near steps counting more; gaps stay out of it."""
    reach = max(2, round(len(values) / 16))
    known = np.isfinite(values)
    kernel = np.bartlett(2 * reach + 1)[1:-1]
    sums = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    counts = np.convolve(known.astype(float), kernel, mode="same")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, sums / counts, np.nan)


def thin(values: np.ndarray) -> np.ndarray:
    """At most `MAX_POINTS` values: means of equal bins."""
    if len(values) <= MAX_POINTS:
        return values
    edges = np.linspace(0, len(values), MAX_POINTS + 1).round().astype(int)
    known = np.isfinite(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), edges[:-1])
    counts = np.add.reduceat(known.astype(float), edges[:-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 0, sums / counts, np.nan)


def number(value: float, percent: bool = False) -> str:
    """A few useful digits: 12.3k  1,234  56.7  0.123  0.00001."""
    if percent:
        return f"{100 * value:.{1 if value >= 0.01 else 2}f} %"
    if value < 0:
        return "\N{MINUS SIGN}" + number(-value)
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1000:.3g}k"
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size < 0.0005 and size > 0:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.3f}" if size < 1 else f"{value:.2f}"


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
    figure, axes = _axes(chart.percent)
    if chart.stacked:
        _stack(axes, steps, found)
    else:
        for line, values in found:
            _curve(axes, steps, thin(values), line)
    if chart.marks is not None:
        _crosses(axes, column(rows, "step"), found[0][1], column(rows, chart.marks))
    if chart.level is not None:
        _level(axes, *chart.level)
    _limits(axes, chart)
    _step_axis(axes, steps)
    legend = [
        Legend(line.name, line.colour, _latest(values, chart.percent), line.dashed)
        for line, values in found
    ]
    svg = to_svg(figure, chart.slug, f"{chart.title} over the steps")
    if len(chart.lines) == 1:
        return Drawn(chart.title, chart.caption, svg, latest=legend[0].latest)
    return Drawn(chart.title, chart.caption, svg, legend=legend)


def _axes(percent: bool) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0.105, 0.115, 0.875, 0.855))
    axes.patch.set_alpha(0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _tick(v, percent)))
    axes.tick_params(pad=3)
    return figure, axes


def _curve(axes: Axes, x: np.ndarray, y: np.ndarray, line: Line) -> None:
    colour = COLOURS[line.colour]
    known = np.isfinite(y)
    style = (0, (3, 2.2)) if line.dashed else "-"
    if known.sum() < MIN_SMOOTH:
        axes.plot(x[known], y[known], color=colour, ls=style, marker="o", ms=3.2, clip_on=False)
        return
    if not line.raw:
        axes.plot(x[known], y[known], color=colour, alpha=0.38, linewidth=0.8)
    curve = y if line.raw else smooth(y)
    width = 1.1 if line.dashed else None
    axes.plot(x[known], curve[known], color=colour, linestyle=style, linewidth=width)
    if not line.dashed:
        last = np.flatnonzero(known)[-1]
        axes.plot(x[last], curve[last], "o", color=colour, markersize=3.6, clip_on=False)


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


def _level(axes: Axes, value: float, name: str) -> None:
    axes.axhline(value, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (2, 2.5)), zorder=1.5)
    if name:
        axes.annotate(
            name,
            (0.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(2, 2.5),
            textcoords="offset points",
            color=COLOURS["muted"],
            fontsize=FONT_PT - 1,
        )


def _limits(axes: Axes, chart: Chart) -> None:
    low, high = axes.get_ylim()
    if high - low < 1e-9:
        low, high = low - 0.5 * max(abs(low), 1e-3), high + 0.5 * max(abs(high), 1e-3)
    if chart.floor is not None:
        low = chart.floor
    axes.set_ylim(low, high)


def _step_axis(axes: Axes, steps: np.ndarray) -> None:
    low, high = float(steps[0]), float(steps[-1])
    room = 0.02 * (high - low) if high > low else 0.5
    if len(steps) < MIN_SMOOTH and high > low:
        room = 0.5
    axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if low == high:
        axes.set_xticks([low])
    _corner(axes, "step")


def _corner(axes: Axes, text: str) -> None:
    """Name of the x axis, in the corner that tick labels leave free."""
    axes.annotate(
        text,
        (0.0, 0.0),
        xycoords="axes fraction",
        xytext=(-4, -6.5),
        textcoords="offset points",
        ha="right",
        va="top",
        color=COLOURS["muted"],
        fontsize=FONT_PT - 1,
    )


def _cloud(rows: list[dict[str, Any]]) -> list[tuple[float, float, float]]:
    """(target, words, |ln(words / target)|) of the model's scored stories."""
    return [
        (float(row["target_word_count"]), float(row["reward"]["words"]), abs(ratio))
        for row in policy_rows(rows)
        if (ratio := log_ratio(row)) is not None
    ]


def _scatter(
    name: str,
    cloud: Sequence[tuple[float, float, float]],
    all_targets: Sequence[float],
    all_words: Sequence[float],
) -> Drawn:
    figure, axes = _axes(percent=False)
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
        axis.set_major_formatter(FuncFormatter(lambda v, _: _tick(v, False)))
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


def _latest(values: np.ndarray, percent: bool) -> str:
    return number(float(values[np.isfinite(values)][-1]), percent)


def _tick(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.4g} %"
    if abs(value) >= 1000:
        return f"{value / 1000:.3g}k"
    if 0 < abs(value) < 0.001:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}"
