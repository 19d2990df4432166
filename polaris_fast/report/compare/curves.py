"""The catalogue's metrics with the runs overlaid: one chart a metric, one colour a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..catalogue import SECTIONS, Chart, Line
from ..charts import Drawn, Legend, Section
from ..drawing import (
    draw_curve,
    draw_level,
    latest,
    new_axes,
    set_limits,
    step_axis,
    thin,
    trend,
)
from ..folder import column
from ..svg import page_style, to_svg
from .runs import Named


def draw_overlays(runs: Sequence[Named]) -> list[Section]:
    """Sections with a chart for every metric that at least one run has and that ever changes."""
    found = []
    with page_style():
        for slug, title, charts in SECTIONS:
            drawn = [
                figure
                for chart in charts
                for one in _one_metric_each(chart)
                if (figure := _overlay(runs, one)) is not None
            ]
            if drawn:
                found.append(Section(slug, title, drawn))
    return found


def _one_metric_each(chart: Chart) -> Iterator[Chart]:
    """A chart a line; dashed lines are bounds of another and stay out."""
    lines = [line for line in chart.lines if not line.dashed]
    for line in lines:
        alone = len(lines) == 1
        yield replace(
            chart,
            slug=f"{chart.slug}-{line.key.replace('/', '-').replace(' ', '-')}",
            title=chart.title if alone else f"{chart.title}: {line.name}",
            lines=(line,),
            stacked=False,
            marks=None,
        )


def _overlay(runs: Sequence[Named], chart: Chart) -> Drawn | None:
    line = chart.lines[0]
    values = [(named, named.run.series(line.key)) for named in runs]
    values = [(named, curve) for named, curve in values if np.isfinite(curve).any()]
    if not values or _constant([curve for _, curve in values]):
        return None
    figure, axes = new_axes(chart.percent)
    steps = []
    for named, curve in values:
        x = column(named.run.rows, "step")
        steps.append(x)
        draw_curve(axes, thin(x), thin(curve), Line(line.key, named.name, named.colour))
    if chart.level is not None:
        draw_level(axes, *chart.level)
    set_limits(axes, chart)
    step_axis(axes, np.sort(np.concatenate(steps)))
    legend = [
        Legend(named.name, named.colour, latest(trend(curve), chart.percent))
        for named, curve in values
    ]
    svg = to_svg(figure, chart.slug, f"{chart.title} over the steps of {len(values)} runs")
    return Drawn(chart.title, chart.caption, svg, legend=legend)


def _constant(curves: Sequence[np.ndarray]) -> bool:
    """Whether all runs have one and the same value throughout: nothing to compare."""
    known = np.concatenate([curve[np.isfinite(curve)] for curve in curves])
    return bool((known == known[0]).all())
