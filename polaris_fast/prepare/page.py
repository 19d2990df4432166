"""report.html: the data set at a glance, one self-contained page in the style of the run report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .. import report
from ..report.svg import COLOURS, HEIGHT_IN, WIDTH_IN, page_style, to_svg
from .bins import ALL_BINS
from .settings import Settings
from .summary import Summary, counted

HERE = Path(__file__).parent
MAX_DROPS, MAX_DUPLICATES, MAX_SOURCES = 60, 40, 40
NUM_BARS = 24


def write_page(path: Path, settings: Settings, summary: Summary) -> None:
    """Write the page: no network, no script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (Path(report.__file__).parent / "page.css").read_text(encoding="utf-8")
    with page_style():
        charts = [_histogram(summary), _bins(summary), _drops(summary)]
    page = environment.get_template("page.html.j2").render(
        settings=settings,
        summary=summary,
        style=Markup(style + (HERE / "page.css").read_text(encoding="utf-8")),
        charts=[chart for chart in charts if chart is not None],
        samples=sorted(summary.samples, key=lambda sample: sample.words),
        facts=_facts(summary),
        sources=_sources(summary),
        max_drops=MAX_DROPS,
        max_duplicates=MAX_DUPLICATES,
    )
    path.write_bytes(page.encode("utf-8", errors="replace"))


Chart = dict[str, object]


def _histogram(summary: Summary) -> Chart:
    train = [line.words for line in summary.lines if not line.is_test]
    test = [line.words for line in summary.lines if line.is_test]
    figure, axes = _figure()
    axes.hist(
        [train, test],
        bins=NUM_BARS,
        stacked=True,
        color=[COLOURS["blue"], COLOURS["amber"]],
        edgecolor=COLOURS["card"],
        linewidth=0.6,
    )
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    legend = [("blue", "train", len(train)), ("amber", "test", len(test))]
    svg = to_svg(figure, "lengths", "Histogram of story lengths")
    return {"title": "Story length", "caption": "Stories by words.", "svg": Markup(svg),
            "legend": legend}  # fmt: skip


def _bins(summary: Summary) -> Chart:
    bins = summary.bins()
    names = [name for name in ALL_BINS if name in bins]
    figure, axes = _figure()
    train = [bins[name][0] for name in names]
    test = [bins[name][1] for name in names]
    axes.set_xlim(-0.7, max(len(names), 3) - 0.3)  # no fat single bar
    axes.bar(names, train, color=COLOURS["blue"], width=0.62)
    axes.bar(names, test, bottom=train, color=COLOURS["amber"], width=0.62)
    legend = [("blue", "train", sum(train)), ("amber", "test", sum(test))]
    svg = to_svg(figure, "bins", "Stories in each length bin")
    return {"title": "Length bins", "caption": "Stories by thousand words.", "svg": Markup(svg),
            "legend": legend}  # fmt: skip


def _drops(summary: Summary) -> Chart | None:
    counts = summary.drop_counts()
    if not counts:
        return None
    names, values = list(counts)[::-1], list(counts.values())[::-1]
    figure, axes = _figure()
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    places = range(len(names))
    axes.barh(places, values, color=COLOURS["rose"], height=0.6)
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - max(len(names), 4) - 0.5, len(names) - 0.5)  # no fat single bar
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    svg = to_svg(figure, "drops", "Texts left out, by reason")
    return {"title": "Left out", "caption": "Texts by reason.", "svg": Markup(svg),
            "legend": [("rose", "texts", sum(values))]}  # fmt: skip


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure, axes


def _thousands(value: float, _: object) -> str:
    return f"{value / 1000:g}K" if value >= 1000 else f"{value:g}"


def _facts(summary: Summary) -> Sequence[str]:
    words = sum(line.words for line in summary.lines)
    authors = {line.author for line in summary.lines if line.author}
    facts = [
        f"{len(summary.lines):,} stories",
        f"{words:,} words",
        f"{len(authors):,} authors",
        counted(summary.num_files, "file"),
        f"{summary.seconds:.1f} s",
    ]
    if summary.spent is not None and summary.spent.price_known:
        facts.append(f"{summary.spent.cost_usd:.2f} USD")
    return facts


def _sources(summary: Summary) -> list[dict[str, object]]:
    table: dict[str, dict[str, object]] = {}
    counts: dict[str, list[int]] = {}
    for line in summary.lines:
        train_test = counts.setdefault(line.source, [0, 0])
        train_test[line.is_test] += 1
        row = table.setdefault(line.source, {"name": line.source, "rights": line.rights})
        row["counts"] = train_test
    return sorted(table.values(), key=lambda row: -sum(counts[str(row["name"])]))[:MAX_SOURCES]
