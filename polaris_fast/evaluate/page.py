"""One self-contained HTML page of a result, and its charts as files; no script, no network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from .measures import LENGTH, MEASURES, QUALITY, TEXT
from .plots import Chart, colour_of, draw_charts
from .results import write_whole
from .summary import Measured
from .table import (
    BY_BUCKET,
    ELO,
    EXTRACTED,
    VERBATIM,
    bias_text,
    elo_remarks,
    interval_text,
    remarks,
    value_text,
)

PAGE_FILE, PLOTS = "evaluation.html", "plots"
HEADLINES = ("quality", "abs_log_ratio", "within_20", "s_l")
LEGEND_PT = 15.0  # below a chart in a file of its own
OPENING_WORDS = 120  # of a story that are shown before the fold
HERE = Path(__file__).parent
REPORT = HERE.parent / "report"


def write_page(
    out: Path, result: dict[str, Any], measured: Mapping[str, Sequence[Measured]]
) -> Path:
    """Write `evaluation.html` and `plots/*.svg`; returns the page's path.

    Raises:
        UserError: the folder cannot be written.
    """
    style = (REPORT / "page.css").read_text(encoding="utf-8")
    points = {
        name: [(float(one.written.target), one.values["words"]) for one in found]
        for name, found in measured.items()
    }
    charts = draw_charts(result, points)
    for chart in charts:
        write_whole(out / PLOTS / f"{chart.slug}.svg", _standalone(chart, style, list(points)))
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            result=result,
            style=Markup(style + (HERE / "page.css").read_text(encoding="utf-8")),
            charts=charts,
            colours={m["name"]: colour_of(i) for i, m in enumerate(result["models"])},
            by_bucket=[MEASURES[key] for key in BY_BUCKET if _known(result, key)],
            groups=[("Scores", QUALITY), ("Length", LENGTH), ("Text", TEXT)],
            bias=bias_text,
            remarks=lambda model, measure: remarks(result, model, measure),
            elo=ELO,
            elo_remarks=lambda name: elo_remarks(result["pairwise"], name),
            extracted=EXTRACTED,
            verbatim=VERBATIM,
            known=lambda key: _known(result, key),
            pairs=_pick_stories(result, measured),
            gains=[line for key in HEADLINES if (line := _sentence(result, key))],
        )
    )
    write_whole(out / PAGE_FILE, page.lstrip())
    return out / PAGE_FILE


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        svg=Markup,
        value=value_text,
        interval=interval_text,
        signed=lambda interval, measure: interval_text(interval, measure, signed=True),
    )
    return environment


def _known(result: dict[str, Any], key: str) -> bool:
    return any(key in model["measures"] for model in result["models"])


def _sentence(result: dict[str, Any], key: str) -> str:
    """What the last model gained over the first, where its interval leaves out 0."""
    first, last = result["models"][0], result["models"][-1]
    gain = (last["measures"].get(key) or {}).get("gain")
    if gain is None or gain["low"] is None or gain["low"] <= 0 <= gain["high"]:
        return ""
    measure = MEASURES[key]
    written = [
        f"; {one} with {m['name']}" for m in (first, last) for one in remarks(result, m, measure)
    ]
    return (
        f"{measure.label}: {value_text(first['measures'][key]['all'], measure)} with "
        f"{first['name']}, {value_text(last['measures'][key]['all'], measure)} with {last['name']} "
        f"(gain {interval_text(gain, measure, signed=True)}"
        f"{''.join(written)})"
    )


def _pick_stories(
    result: dict[str, Any], measured: Mapping[str, Sequence[Measured]]
) -> list[dict[str, Any]]:
    """One prompt a bucket, all models' first stories side by side."""
    first = next(iter(measured.values()))
    ordered = sorted(first, key=lambda one: one.written.target)
    count = len(result["buckets"])
    places = [ordered[(2 * i + 1) * len(ordered) // (2 * count)].written for i in range(count)]
    found = []
    for place in places:
        sides = []
        for name, ones in measured.items():
            one = next(
                o for o in ones if (o.written.uid, o.written.target) == (place.uid, place.target)
            )
            opening, rest = _cut(one.written.story)
            sides.append({"name": name, "one": one, "opening": opening, "rest": rest})
        found.append({"prompt": place.prompt, "target": place.target, "sides": sides})
    return found


def _cut(story: str) -> tuple[str, str]:
    """The opening, and what is folded away."""
    ends = [match.end() for match in re.finditer(r"\S+", story)]
    if len(ends) <= OPENING_WORDS * 3 // 2:
        return story, ""
    place = ends[OPENING_WORDS - 1]
    return story[:place], story[place:].lstrip()


def _standalone(chart: Chart, style: str, names: Sequence[str]) -> str:
    """The chart as a file of its own: colours, light and dark, and the legend go with it."""
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)[:2]
    css = (
        f"svg{{{light} background: var(--card); font-family: var(--sans)}} "
        f"@media (prefers-color-scheme: dark) {{svg{{{dark}}}}}"
    )
    head, _, rest = chart.svg.partition(">")
    width, height = (float(n) for n in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)[0])
    head = re.sub(r'viewBox="[^"]*"', f'viewBox="0 0 {width} {height + LEGEND_PT}"', head)
    step = width / len(names)
    keys = [
        f'<circle cx="{step * i + 8:.1f}" cy="{height + 7:.1f}" r="3" '
        f'fill="var(--{colour_of(i)})"/>'
        f'<text x="{step * i + 14:.1f}" y="{height + 10:.1f}" font-size="8" fill="var(--soft)">'
        f"{escape(name)}</text>"
        for i, name in enumerate(names)
    ]
    body = rest.removesuffix("</svg>")
    legend = "".join(keys)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{css}</style>{body}{legend}</svg>'
