"""The table of a benchmark: printed, and kept under benchmarks/results/."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass
class Table:
    """Rows under named columns; `finish` prints them and writes NAME.json and NAME.md.

    The first `num_keys` columns name a row: rows of an earlier run with other names stay.
    """

    name: str
    title: str
    columns: Sequence[str]
    num_keys: int = 1
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def add(self, *values: Any) -> None:
        """One row. ValueError when the number of values is not that of the columns."""
        if len(values) != len(self.columns):
            raise ValueError(f"Table: {len(values)} values for {len(self.columns)} columns")
        self.rows.append(values)

    def finish(self) -> None:
        """Print, and write the files; nothing for a table without rows."""
        if not self.rows:
            return
        RESULTS.mkdir(exist_ok=True)
        named = {row[: self.num_keys]: row for row in [*self._earlier(), *self.rows]}
        self.rows = list(named.values())
        print(f"\n\n{self.text()}\n{about_machine()}")
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        tree = {"title": self.title, "machine": about_machine(), "rows": rows}
        (RESULTS / f"{self.name}.json").write_text(json.dumps(tree, indent=1) + "\n")
        (RESULTS / f"{self.name}.md").write_text(f"{self.text()}\n\n{about_machine()}\n")

    def _earlier(self) -> list[tuple[Any, ...]]:
        """Rows of the file as it is, if it has these columns."""
        path = RESULTS / f"{self.name}.json"
        rows = json.loads(path.read_text())["rows"] if path.is_file() else []
        return [tuple(row.values()) for row in rows if tuple(row) == tuple(self.columns)]

    def text(self) -> str:
        """Markdown with aligned columns."""
        cells = [[str(c) for c in row] for row in (self.columns, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
            for row in cells
        ]
        lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
        return f"{self.title}\n\n" + "\n".join(lines)


def about_machine() -> str:
    """Cores and versions in one line."""
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"aiohttp {version('aiohttp')}, torch {version('torch')}"
    )
