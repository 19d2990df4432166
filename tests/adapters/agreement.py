"""A table of largest relative differences from a peer; `pytest -s` shows it when a module ends."""

from __future__ import annotations


class AgreementTable:
    """Cells under (row, column), printed as text with aligned columns."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._cells: dict[tuple[str, ...], dict[str, str]] = {}

    def add(self, row: tuple[str, ...], column: str, *differences: float | None) -> None:
        """One cell; a difference of None is a combination that is refused."""
        shown = ["refused" if x is None else f"{x:.0e}" for x in differences]
        self._cells.setdefault(row, {})[column] = " ".join(shown)

    def text(self) -> str:
        """Rows in the order in which they came."""
        columns = list(dict.fromkeys(c for cells in self._cells.values() for c in cells))
        width = len(next(iter(self._cells), ()))
        lines = [[""] * width + columns]
        for row, cells in self._cells.items():
            lines.append([*row, *(cells.get(column, "-") for column in columns)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        body = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
        return "\n".join([f"\n{self.title}", *(line.rstrip() for line in body)])
