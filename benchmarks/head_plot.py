"""The picture of a run: time over the floor and peak memory, one row a provider."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .head_cases import TASKS
from .head_table import by_case, describe_shape, format_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _PEER, _FLOOR = "#c2410c", "#94a3b8", "#334155"
_ROW_INCHES, _HEAD_INCHES = 0.24, 0.75


def draw(entries: Sequence[dict[str, Any]], path: Path) -> Path:
    """Write the picture of `CaseReport.info` entries to `path` (its suffix says which format)."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    cases = by_case(entries)
    heights = [_HEAD_INCHES + _ROW_INCHES * len(case) for case in cases]
    figure, axes = plt.subplots(
        len(cases), 2, figsize=(11, sum(heights)), squeeze=False,
        height_ratios=heights, layout="constrained", width_ratios=(3, 2),
    )  # fmt: skip
    for (time, memory), case in zip(axes, cases, strict=True):
        shown = sorted(case, key=lambda e: -e["p50_ms"])
        _times(time, shown)
        _memory(memory, shown)
    figure.savefig(path)
    plt.close(figure)
    return path


def _times(axes: Axes, entries: Sequence[dict[str, Any]]) -> None:
    first = entries[0]
    shape = describe_shape(first)
    ratios = [1 / e["share_of_floor"] for e in entries]
    spread = [
        [(e["p50_ms"] - e["p20_ms"]) / e["floor_ms"] for e in entries],
        [(e["p80_ms"] - e["p50_ms"]) / e["floor_ms"] for e in entries],
    ]
    places, colours = range(len(entries)), _colours(entries)
    axes.hlines(places, 1.0, ratios, colors=colours, linewidth=1.5)
    axes.errorbar(
        ratios, places, xerr=spread, fmt="none", elinewidth=0.8, capsize=2, ecolor="#0f172a"
    )
    axes.scatter(ratios, places, color=colours, s=28, zorder=3)
    for place, ratio, entry in zip(places, ratios, entries, strict=True):
        label = f"{ratio:.2f}x, {format_ms(entry['p50_ms'])} ms"
        right = 1 + (entry["p80_ms"] - entry["p50_ms"]) / entry["p50_ms"]
        axes.annotate(
            label, (ratio * right, place), (8, 0), textcoords="offset points",
            fontsize=7, va="center",
        )  # fmt: skip
    axes.axvline(1.0, color=_FLOOR, linewidth=0.8, linestyle=":")
    axes.set_title(f"{TASKS[first['task']]}\n{shape}", loc="left", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(0.8 * min(ratios), 4.0 * max(ratios))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_yticks(places, _names(entries))
    axes.set_xlabel("time over the floor, log scale (dots p50, whiskers p20 to p80)", fontsize=7)
    _quiet(axes, len(entries))


def _memory(axes: Axes, entries: Sequence[dict[str, Any]]) -> None:
    sizes = [e["peak_extra_mib"] or 0.0 for e in entries]
    bars = axes.barh(_names(entries), sizes, color=_colours(entries))
    labels = ["" if e["peak_extra_mib"] is None else f"{e['peak_extra_mib']:,.0f}" for e in entries]
    axes.bar_label(bars, labels=labels, padding=3, fontsize=7)
    axes.set_xlim(0, 1.2 * max([*sizes, 1.0]))
    axes.set_xlabel("peak extra memory (MiB)", fontsize=7)
    axes.set_yticklabels([])
    _quiet(axes, len(entries))


def _names(entries: Sequence[dict[str, Any]]) -> list[str]:
    return [e["provider"] for e in entries]


def _colours(entries: Sequence[dict[str, Any]]) -> list[str]:
    kinds = {"floor": _FLOOR, "polaris": _OURS}
    return [kinds.get(e["provider"].split()[0], _PEER) for e in entries]


def _quiet(axes: Axes, num_rows: int) -> None:
    axes.set_ylim(-0.6, num_rows - 0.4)  # of both panels, so that their rows are level
    axes.tick_params(labelsize=8, length=0)
    axes.spines[["top", "right"]].set_visible(False)
