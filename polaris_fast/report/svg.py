"""Matplotlib figures as inline SVG: page colours, page fonts, stable ids, nothing else.

Matplotlib knows colours only, so every named colour is drawn as a hex value that nothing else uses
and is replaced by its CSS variable afterwards; this is what makes the dark theme work.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN = 4.1, 2.3  # a third of a desktop page, the whole of a phone's
FONT_PT = 8.5
NAMES = ("ink", "muted", "line", "card", "blue", "teal", "amber", "rose", "violet", "slate")
COLOURS = {name: f"#0a1b{i:02x}" for i, name in enumerate(NAMES, start=1)}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "polaris",
    "font.size": FONT_PT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": COLOURS["line"],
    "axes.linewidth": 0.9,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.7,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "path.simplify_threshold": 0.5,
}


@contextmanager
def page_style() -> Iterator[None]:
    """Matplotlib settings of every chart of the page, whatever a user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def to_svg(figure: Figure, slug: str, label: str) -> str:
    """One `<svg>` element. The same figure gives the same text.

    Args:
        figure: drawn under `page_style`, with colours from `COLOURS`.
        slug: prefix of every id, unique in the page.
        label: what a screen reader says.
    """
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(
        buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = _own_ids(text, slug)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r"\bfont: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r" font-family: [^;\"]*;?", "", text)  # the page's font instead
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"(>)\s+(<)", r"\1\2", text)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    head = f'<svg class="chart" role="img" aria-label="{label}" {view.group()}>'
    return head + text[text.index(">") + 1 :].strip()


def _own_ids(text: str, slug: str) -> str:
    """Keep only the ids that something refers to, and make them unique in the page."""
    used = set(re.findall(r"(?:xlink:href=\"|url\()#([^\")]+)", text))

    def rename(found: re.Match[str]) -> str:
        return f' id="{slug}-{found[1]}"' if found[1] in used else ""

    text = re.sub(r' id="([^"]+)"', rename, text)
    text = re.sub(r'xlink:href="#', f'href="#{slug}-', text)
    return text.replace("url(#", f"url(#{slug}-")
