"""The results as a table and a picture, from the JSON of a run.

    python -m benchmarks.head_table first.json later.json --into benchmarks/results/head

Without `--into`, which writes .json, .md and .svg, the table is shown only. A run may come in
pieces: of a case that several files have, the last one's results count.

"of the floor" is floor / p50; "over ours" is p50 / the fastest p50 of ours in that case.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .head_cases import TASKS

Info = dict[str, Any]
"""`CaseReport.info` of one provider."""

_COLUMNS = (
    "provider", "p50 ms", "p20", "p80", "rounds", "of the floor", "over ours", "peak MiB",
    "rel. error",
)  # fmt: skip


def read(path: Path) -> list[Info]:
    """The head entries of a pytest-benchmark JSON or of `python -m benchmarks.head`."""
    data = json.loads(path.read_text())
    if "entries" in data:
        return list(data["entries"])
    return [b["extra_info"] for b in data["benchmarks"] if "floor_ms" in b["extra_info"]]


def merged(files: Sequence[Sequence[Info]]) -> list[Info]:
    """The entries of all files; of a case that several have, those of the last alone."""
    cases: dict[str, list[Info]] = {}
    for entries in files:
        cases.update({case[0]["case"]: case for case in by_case(entries)})
    return [entry for case in cases.values() for entry in case]


def by_case(entries: Sequence[Info]) -> list[list[Info]]:
    """The entries of each case, cases in the order of their first entry."""
    cases: dict[str, list[Info]] = {}
    for entry in entries:
        cases.setdefault(entry["case"], []).append(entry)
    return list(cases.values())


def render(entries: Sequence[Info]) -> str:
    """A Markdown table for each case, with the providers that are not in it and why."""
    return "\n\n".join(_case_table(case) for case in by_case(entries))


def _case_table(case: list[Info]) -> str:
    entries = sorted(case, key=lambda e: (e["provider"] != "floor", e["p50_ms"]))
    first = entries[0]
    ours = best_of_ours(entries)
    lines = [
        f"### {TASKS[first['task']]}",
        f"{describe_shape(first)}; floor: {first.get('form', '')}",
        "",
        *_grid([_COLUMNS, *(_row(entry, ours) for entry in entries)]),
    ]
    left_out = [
        f"- {provider}: {word}: {why}"
        for key, word in (("missing", "not measured"), ("wrong", "WRONG"), ("failed", "FAILED"))
        for provider, why in first.get(key, {}).items()
    ]
    return "\n".join([*lines, *([""] if left_out else []), *left_out])


def describe_shape(entry: Info) -> str:
    """Sizes, dtype and where it ran."""
    sizes = ", ".join(f"{name} {size:,}" for name, size in entry["shape"].items())
    threads = f"{entry['threads']} CPU thread" + ("s" if entry["threads"] > 1 else "")
    return f"{sizes}, {entry['dtype']}, {'CUDA' if entry['device'] == 'cuda' else threads}"


def _grid(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Markdown lines, the first row as the head and the first column to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = []
    for row in rows:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(" | ".join(["| " + first.strip().ljust(widths[0]), *rest]) + " |")
    rule = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    return [lines[0], "|" + "|".join(rule) + "|", *lines[1:]]


def best_of_ours(entries: Sequence[Info]) -> Info | None:
    """Our fastest entry."""
    found = [e for e in entries if e["provider"].startswith("polaris")]
    return min(found, key=lambda e: e["p50_ms"], default=None)


def _row(entry: Info, ours: Info | None) -> tuple[str, ...]:
    is_ours = entry["provider"].startswith("polaris") or entry["provider"] == "floor"
    against = "" if ours is None or is_ours else f"{entry['p50_ms'] / ours['p50_ms']:.2f}x"
    peak, error = entry["peak_extra_mib"], entry["rel_error"]
    return (
        entry["provider"],
        *(format_ms(entry[key]) for key in ("p50_ms", "p20_ms", "p80_ms")),
        str(entry["rounds"]),
        f"{100 * entry['share_of_floor']:.0f} %",
        against,
        "" if peak is None else f"{peak:,.0f}",
        "" if error is None else f"{error:.1e}",
    )


def format_ms(value: float) -> str:
    """Three digits, or all of them before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, nargs="+")
    parser.add_argument("--into", type=Path, metavar="STEM", help="write STEM.json, .md and .svg")
    known = parser.parse_args()
    entries = merged([read(path) for path in known.json])
    if not entries:
        names = ", ".join(map(str, known.json))
        print(f"error: no head results in {names}; run pytest benchmarks --benchmark-only")
        return 2
    print(render(entries))
    if known.into is not None:
        print(f"\nwrote {', '.join(map(str, write(entries, known.into)))}")
    return 0


def write(entries: list[Info], stem: Path) -> list[Path]:
    """STEM.json (which `read` takes), STEM.md and STEM.svg."""
    from .head_plot import draw

    stem.parent.mkdir(parents=True, exist_ok=True)
    data, text, picture = (stem.with_suffix(suffix) for suffix in (".json", ".md", ".svg"))
    data.write_text(json.dumps({"entries": entries}, indent=1) + "\n")
    text.write_text("# The loss head, measured\n\n" + render(entries) + "\n")
    return [data, text, draw(entries, picture)]


if __name__ == "__main__":
    raise SystemExit(main())
