"""Charts of a result: measures by bucket with intervals, and words against words asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..report.svg import COLOURS, HEIGHT_IN, WIDTH_IN, page_style, to_svg
from .measures import MEASURES, Measure

MODEL_COLOURS = ("slate", "blue", "teal", "amber", "rose", "violet")
BY_BUCKET = ("quality", "length_ratio", "abs_log_ratio", "s_l", "repetition_mean", "slop")
CAPTIONS = {
    "quality": "Points of the rubric, by words asked for; bars are 95 % intervals.",
    "length_ratio": "Words written over words asked for; 1 is what was asked.",
    "abs_log_ratio": "Distance from the length asked for, either way; 0 is best.",
    "s_l": "LongBench-Write's length score, 100 at the length asked for.",
    "repetition_mean": "Repeated 4-grams in windows of 1,000 words.",
    "slop": "Stock phrases of machine prose a thousand words.",
}


@dataclass(frozen=True)
class Chart:
    """A chart, ready for the page."""

    slug: str
    title: str
    caption: str
    svg: str


def draw_charts(
    result: dict[str, Any], points: dict[str, list[tuple[float, float]]]
) -> list[Chart]:
    """Every chart that has numbers.

    Args:
        points: model -> (words asked for, words written) of its stories.
    """
    with page_style():
        found = [
            _by_bucket(result, MEASURES[key])
            for key in BY_BUCKET
            if any(_has_something(model["measures"].get(key)) for model in result["models"])
        ]
        return [*found, _lengths(points)]


def colour_of(index: int) -> str:
    """Name of the colour of the model at this place."""
    return MODEL_COLOURS[index % len(MODEL_COLOURS)]


def _has_something(numbers: dict[str, Any] | None) -> bool:
    """Whether a curve would not lie at 0 throughout."""
    return numbers is not None and any(one["estimate"] for one in numbers["buckets"].values())


def _by_bucket(result: dict[str, Any], measure: Measure) -> Chart:
    figure, axes = _axes(measure.percent)
    labels = result["buckets"]
    if measure.key == "length_ratio":
        axes.axhline(1.0, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (2, 2.5)))
    models = result["models"]
    for index, model in enumerate(models):
        numbers = model["measures"].get(measure.key)
        if numbers is not None:
            shift = 0.09 * (index - (len(models) - 1) / 2)
            _line(axes, labels, numbers["buckets"], shift, COLOURS[colour_of(index)])
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.4, len(labels) - 0.6)
    slug = measure.key.replace("_", "-")
    svg = to_svg(figure, slug, f"{measure.label} by words asked for")
    return Chart(slug, measure.label, CAPTIONS[measure.key], svg)


def _line(
    axes: Axes, labels: Sequence[str], buckets: dict[str, Any], shift: float, colour: str
) -> None:
    known = [(i + shift, buckets[label]) for i, label in enumerate(labels) if label in buckets]
    x = np.array([place for place, _ in known])
    y = np.array([one["estimate"] for _, one in known])
    axes.plot(x, y, color=colour, linewidth=1.4, marker="o", markersize=4)
    for place, one in known:
        if one["low"] is not None:
            axes.plot([place, place], [one["low"], one["high"]], color=colour, linewidth=1.1)


def _lengths(points: dict[str, list[tuple[float, float]]]) -> Chart:
    figure, axes = _axes(percent=False)
    asked = np.array([target for found in points.values() for target, _ in found])
    line = np.array([0.0, asked.max() * 1.08])
    axes.fill_between(line, line / 1.2, line * 1.2, color=COLOURS["teal"], alpha=0.14, linewidth=0)
    axes.plot(line, line, color=COLOURS["teal"], linewidth=1)
    for index, found in enumerate(points.values()):
        targets, words = np.array(found, dtype=float).T
        colour = COLOURS[colour_of(index)]
        axes.scatter(targets, words, s=11, color=colour, alpha=0.5, linewidth=0)
    axes.set_xlim(asked.min() * 0.9, asked.max() * 1.05)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _tick(v, False)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    svg = to_svg(figure, "lengths", "Words written against words asked for")
    caption = "Each story: words asked for, across, and written, up. The band is within 20 %."
    return Chart("lengths", "Words against words asked for", caption, svg)


def _axes(percent: bool) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0.105, 0.115, 0.875, 0.855))
    axes.patch.set_alpha(0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _tick(v, percent)))
    axes.tick_params(pad=3)
    return figure, axes


def _tick(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.4g} %"
    return f"{value / 1000:.3g}k" if abs(value) >= 1000 else f"{value:.4g}"
