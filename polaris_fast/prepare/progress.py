"""What the terminal shows while a data set is made: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

EVERY_S = 10.0  # between plain lines


class ProgressView:
    """One stage at a time; a context manager that gives the terminal back."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._out = stream or sys.stderr
        self._bar: Progress | None = None
        if self._out.isatty():
            self._bar = Progress(
                TextColumn("{task.description:<22}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%  {task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(file=self._out),
                transient=True,
            )
        self._task: TaskID | None = None
        self._stage, self._total, self._done, self._told_at = "", 0.0, 0.0, 0.0

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def stage(self, name: str, total: float) -> None:
        """Begin a stage of `total` units."""
        self._stage, self._total, self._done = name, max(total, 1e-9), 0.0
        self._told_at = time.monotonic()
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=self._total, note="")

    def advance(self, amount: float, note: str = "") -> None:
        """Some units of the stage are done; `note` is the latest count."""
        self._done += amount
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, note=note)
        elif self._bar is None and time.monotonic() - self._told_at >= EVERY_S:
            self._told_at = time.monotonic()
            share = min(1.0, self._done / self._total)
            print(f"{self._stage}: {share:.0%} {note}".rstrip(), file=self._out, flush=True)

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self._out, flush=True)
