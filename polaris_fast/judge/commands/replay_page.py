"""The chart of `replay`: one self-contained page, scores against scores and orders over steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ...report.svg import COLOURS, FONT_PT, WIDTH_IN, page_style, to_svg
from ...types import RowKind, UserError
from ..agreement import Agreement
from .replay import Pair, compare_pairs

NUM_EXAMPLES = 8
OPENING_CHARS = 240
HEIGHT_IN = 3.0


def write_page(
    path: Path, pairs: Sequence[Pair], found: Agreement, judges: tuple[str, str]
) -> Path:
    """Write the page; returns its path. Raises UserError when it cannot be written."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        draft.write_text(page_of(pairs, found, judges), encoding="utf-8", errors="replace")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(
            f"--html: {path} cannot be written ({error.strerror}); give another"
        ) from error
    return path


def page_of(pairs: Sequence[Pair], found: Agreement, judges: tuple[str, str]) -> str:
    """The page as text."""
    css = (resources.files("polaris_fast.report") / "page.css").read_text(encoding="utf-8")
    old, new = map(escape, judges)
    with page_style():
        charts = [
            (
                "Score against score",
                f"{old} across, {new} up; a point is a story.",
                _scatter(pairs),
            ),
            (
                "Turned orders",
                "Share of a step's pairs within a group that the judges order differently.",
                _over_steps(pairs),
            ),
        ]
    figures = "".join(
        f"<figure><figcaption><h3>{title}</h3><p>{caption}</p></figcaption>{svg}</figure>"
        for title, caption, svg in charts
        if svg
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{new} against {old}</title><style>{css}</style></head><body>"
        f'<header><p class="overline">Two judges, the same stories</p><h1>{new} against {old}</h1>'
        f'<p class="sentence">{escape(sentence(found))}</p></header><main>'
        f'<section><h2>Agreement</h2><div class="charts">{figures}</div></section>'
        f"<section><h2>Where they differ most</h2>{_examples(pairs)}</section></main></body></html>"
    )


def sentence(found: Agreement) -> str:
    """The comparison in words."""
    parts = [f"{found.num_stories:,} stories of the model in {found.num_groups:,} groups"]
    if found.spearman is not None:
        parts.append(f"rank correlation {found.spearman:.2f}")
    parts.append(f"mean shift {found.mean_shift:+.2f}")
    if found.flipped_pairs is not None:
        parts.append(f"{100 * found.flipped_pairs:.0f} % of the orders inside a group turned")
    return ", ".join(parts) + "."


def _scatter(pairs: Sequence[Pair]) -> str:
    figure, axes = _axes()
    ends = [min(min(p.row.quality, p.quality) for p in pairs)]
    ends.append(max(max(p.row.quality, p.quality) for p in pairs))
    axes.plot(ends, ends, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (2, 2.5)))
    for kind, colour, name in (
        (RowKind.POLICY, "blue", "model"),
        (RowKind.HUMAN, "amber", "human"),
    ):
        chosen = [p for p in pairs if p.row.kind is kind]
        if chosen:
            x, y = [p.row.quality for p in chosen], [p.quality for p in chosen]
            axes.scatter(x, y, s=11, color=COLOURS[colour], alpha=0.55, linewidth=0, label=name)
    axes.legend(frameon=False, labelcolor=COLOURS["muted"], fontsize=FONT_PT, handletextpad=0.2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    return to_svg(figure, "scores", "Scores of the new judge against those of the old one")


def _over_steps(pairs: Sequence[Pair]) -> str:
    """Turned orders by step; nothing for a single step."""
    shares = {}
    policy = [p for p in pairs if p.row.kind is RowKind.POLICY]
    for step in sorted({p.row.step for p in policy}):
        shares[step] = compare_pairs([p for p in policy if p.row.step == step]).flipped_pairs
    known = {step: share for step, share in shares.items() if share is not None}
    if len(known) < 2:
        return ""
    figure, axes = _axes()
    axes.plot(list(known), list(known.values()), color=COLOURS["rose"], marker="o", markersize=3.2)
    axes.axhline(0.5, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (2, 2.5)))
    axes.annotate("chance", (min(known), 0.5), xytext=(2, 2.5), textcoords="offset points",
                  color=COLOURS["muted"], fontsize=FONT_PT - 1)  # fmt: skip
    axes.set_ylim(0, max(0.6, *known.values()))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    return to_svg(figure, "orders", "Share of turned orders over the steps")


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0.115, 0.09, 0.865, 0.88))
    axes.patch.set_alpha(0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return figure, axes


def _examples(pairs: Sequence[Pair]) -> str:
    """The stories whose places in their groups differ most, with their openings."""
    shift = {id(p): s for p, s in zip(pairs, _shift_in_group(pairs), strict=True)}
    worst = sorted(pairs, key=lambda p: -abs(shift[id(p)]))[:NUM_EXAMPLES]
    items = "".join(
        '<li style="margin-bottom: 12px"><p class="overline">'
        f"step {p.row.step}, story {escape(p.row.row_id)}: "
        f"{p.row.quality:.2f} before, {p.quality:.2f} now, {shift[id(p)]:+.2f} against its group"
        f"</p><p>{escape(_opening(p.row.story))}</p></li>"
        for p in worst
    )
    return f"<ul>{items}</ul>"


def _shift_in_group(pairs: Sequence[Pair]) -> list[float]:
    """new - old of each story, less the mean of that over its group."""
    groups: dict[tuple[int, int], list[float]] = {}
    for p in pairs:
        groups.setdefault((p.row.step, p.row.group), []).append(p.quality - p.row.quality)
    means = {name: float(np.mean(values)) for name, values in groups.items()}
    return [p.quality - p.row.quality - means[p.row.step, p.row.group] for p in pairs]


def _opening(story: str) -> str:
    text = " ".join(story.split())
    return text if len(text) <= OPENING_CHARS else text[:OPENING_CHARS].rsplit(" ", 1)[0] + " ..."
