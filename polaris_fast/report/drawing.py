"""Curves over steps in the page's style, shared by the report of one run and of several."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .catalogue import Chart, Line
from .svg import COLOURS, FONT_PT, HEIGHT_IN, WIDTH_IN

MAX_POINTS = 400  # more steps than this are averaged in bins: the page has no more pixels
MIN_SMOOTH = 8  # below this many points the raw values are the curve


def new_axes(percent: bool) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0.105, 0.115, 0.875, 0.855))
    axes.patch.set_alpha(0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: tick_text(v, percent)))
    axes.tick_params(pad=3)
    return figure, axes


def draw_curve(axes: Axes, x: np.ndarray, y: np.ndarray, line: Line) -> None:
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


def draw_level(axes: Axes, value: float, name: str) -> None:
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


def set_limits(axes: Axes, chart: Chart) -> None:
    low, high = axes.get_ylim()
    if high - low < 1e-9:
        low, high = low - 0.5 * max(abs(low), 1e-3), high + 0.5 * max(abs(high), 1e-3)
    if chart.floor is not None:
        low = chart.floor
    axes.set_ylim(low, high)


def step_axis(axes: Axes, steps: np.ndarray) -> None:
    low, high = float(steps[0]), float(steps[-1])
    room = 0.02 * (high - low) if high > low else 0.5
    if len(steps) < MIN_SMOOTH and high > low:
        room = 0.5
    axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if low == high:
        axes.set_xticks([low])
    _corner(axes, "step")


def trend(values: np.ndarray) -> np.ndarray:
    """What the thick line shows: a running mean, or the values where they are few."""
    return values if np.isfinite(values).sum() < MIN_SMOOTH else smooth(values)


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
    """A few useful digits: 1.235M  12.3k  1,234  56.7  0.123  0.00001."""
    if percent:
        return f"{100 * value:.{1 if value >= 0.01 else 2}f} %"
    if value < 0:
        return "\N{MINUS SIGN}" + number(-value)
    size = abs(value)
    if size >= 999_500:
        return f"{value / 1e6:.4g}M" if size < 1e9 else f"{value / 1e6:,.0f}M"
    if size >= 10_000:
        return f"{value / 1000:.3g}k"
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size < 0.0005 and size > 0:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.3f}" if size < 1 else f"{value:.2f}"


def latest(values: np.ndarray, percent: bool) -> str:
    return number(float(values[np.isfinite(values)][-1]), percent)


def tick_text(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.4g} %"
    if abs(value) >= 1000:
        return f"{value / 1000:.3g}k"
    if 0 < abs(value) < 0.001:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}"


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
