"""The memory of every phase as stacked bars against what the machine has."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..types import UserError
from .build import Plan
from .hardware import GIB

_COLOURS = {
    "weights": "#334155",
    "reference model": "#64748b",
    "gathered weights": "#94a3b8",
    "fp32 masters": "#1d4ed8",
    "Adam moments": "#60a5fa",
    "gradients": "#0f766e",
    "engine's buffers": "#5eead4",
    "head's workspace": "#a3e635",
    "KV cache and states": "#c026d3",
    "vLLM server": "#86198f",
    "saved activations": "#ea580c",
    "working tensors": "#fdba74",
    "fragmentation, context": "#d4d4d8",
}


def write_plot(plan: Plan, path: str) -> None:
    """Write an SVG; the same plan gives the same file.

    Raises:
        UserError: the file cannot be written.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "polaris", "font.size": 10})
        figure = _draw(plan)
        try:
            with Path(path).open("wb") as file:
                FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
        except OSError as error:
            raise UserError(
                f"--svg: cannot write {path!r} ({error.strerror}); give a file in a folder that "
                "exists"
            ) from error


def _draw(plan: Plan) -> Figure:
    memory = plan.memory
    phases = memory.phases[::-1]
    unit, word = (GIB, "GiB") if memory.total >= GIB else (2**20, "MiB")
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(phases)
    for name, colour in _COLOURS.items():
        sizes = [dict(phase.pieces).get(name, 0) / unit for phase in phases]
        if name.startswith("fragmentation"):
            extra = (memory.margin + memory.overhead) / unit
            sizes = [extra if phase is memory.peak_phase else 0.0 for phase in phases]
        if not any(sizes):
            continue
        axes.barh(range(len(phases)), sizes, left=left, color=colour, label=name, height=0.62)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    axes.set_yticks(range(len(phases)), [phase.name for phase in phases])
    for y, end in enumerate(left):
        axes.annotate(f"{end:,.1f}", (end, y), (4, 0), textcoords="offset points", va="center")
    available = memory.available / unit
    if available < 3 * max(left):
        axes.axvline(available, color="#b91c1c", linewidth=1.4)
        axes.annotate(
            f"{available:,.1f} {word}", (available, 1.01), xycoords=("data", "axes fraction"),
            color="#b91c1c", ha="center", va="bottom",
        )  # fmt: skip
    axes.set_xlim(0, 1.12 * max(*left, available if available < 3 * max(left) else 0))
    axes.set_xlabel(f"{word} on one rank")
    axes.spines[["top", "right"]].set_visible(False)
    verdict = "fits" if memory.fits else "does not fit"
    figure.suptitle(
        f"{plan.shape.name} on {plan.machine.count} x {plan.machine.name}: {verdict}",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
