"""A panel that redraws in place: bars of the running phases, metrics with their history."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .base import SHOWN, TOTALS, View, clock, number
from .divert import divert
from .judge import Look, State

REFRESH_PER_S = 4  # a frame costs a few milliseconds of the two cores that train
SPARK_WIDTH = 28


class LiveView(View):
    """A panel that redraws in place: bars of the running phases, metrics with their history.

    Anything else written to the terminal (log handlers, warnings, tqdm) is printed above the panel.
    Lock order: rich holds its own lock while it asks for a frame, so nothing here prints while
    holding ours.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(now)
        self._console = console
        self._live: Live | None = None
        self._undo: list[Callable[[], object]] = []

    def start(
        self,
        title: str,
        facts: Mapping[str, str],
        total_steps: int,
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Take the bottom of the terminal."""
        with self._run.lock:
            self._run.start(title, facts, total_steps, history)
        if self._live is not None:
            return
        self._live = Live(
            get_renderable=self._frame,
            console=self._console,
            refresh_per_second=REFRESH_PER_S,
            redirect_stdout=False,  # `divert` does it, with logging handlers and tqdm in mind
            redirect_stderr=False,
        )
        atexit.register(self.stop)
        self._undo = divert(self._console)
        self._live.start()

    def stop(self) -> None:
        """Leave the last frame on the screen and give everything back."""
        live, self._live = self._live, None
        if live is None:
            return
        try:
            live.stop()
        finally:
            while self._undo:
                self._undo.pop()()
            atexit.unregister(self.stop)

    def phase(self, name: str, total: int | None = None) -> None:
        """A new bar."""
        with self._run.lock:
            self._run.phase(name, total)

    def advance(self, n: int = 1, *, phase: str | None = None, **info: Any) -> None:
        """A longer bar."""
        with self._run.lock:
            self._run.advance(n, phase, info)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Bars go, the table gains a column of history."""
        with self._run.lock:
            self._run.step(step, metrics)

    def tick(self) -> None:
        """Nothing to do: every frame looks after the judge."""

    def note(self, text: str) -> None:
        """One line above the panel."""
        self._console.print(Text(text))

    def warn(self, text: str) -> None:
        """One line above the panel."""
        self._console.print(Text.assemble(("warning: ", "bold yellow"), text))

    def _frame(self) -> RenderableType:
        with self._run.lock:
            parts: list[RenderableType] = [self._facts(), Text(), self._bars(), *self._trouble()]
            if self._run.rows:
                parts += [Text(), self._table(), *self._footer()]
            title = Text(self._run.title, "bold not dim")
        return Panel(
            Group(*parts),
            title=title,
            title_align="left",
            box=self._box(),
            border_style="dim",
            padding=(0, 1),
        )

    def _ascii(self) -> bool:
        return self._console.options.ascii_only

    def _box(self) -> box.Box:
        return box.ASCII if self._ascii() else box.ROUNDED

    def _facts(self) -> Columns:
        facts = [
            Text.assemble((f"{name} ", "dim"), value) for name, value in self._run.facts.items()
        ]
        return Columns(facts, padding=(0, 3))

    def _bars(self) -> Table:
        run = self._run
        grid = Table.grid(padding=(0, 2), expand=False)
        grid.add_column(min_width=15, no_wrap=True)
        grid.add_column(width=30)
        grid.add_column(justify="right", no_wrap=True)
        grid.add_column(style="dim")
        eta = run.eta_s()
        times = f"{clock(run.elapsed_s())} gone"
        times += f", {clock(eta)} left" if eta is not None else ""
        grid.add_row(
            Text("step", "bold"),
            _bar(run.current, run.total_steps, "blue"),
            f"{run.current}/{run.total_steps}",
            times,
        )
        for phase in run.phases.values():
            spent = clock((phase.ended or run.now()) - phase.started)
            grid.add_row(
                phase.name,
                _bar(phase.done, phase.total, "cyan"),
                phase.count(),
                f"{phase.details()}  {spent}".strip(),
            )
        return grid

    def _trouble(self) -> list[Text]:
        """The judge's troubles; nothing while it is well."""
        look = self._judge.look() if self._judge is not None else Look()
        if look.state is State.WELL:
            return []
        style = "bold red" if look.state is State.PAUSED else "bold yellow"
        troubles = Text("; ".join(look.troubles), style)
        numbers = Text("   ".join(look.numbers), "dim")
        return [Text(), Text.assemble(("judge  ", style), troubles), Text("       ") + numbers]

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("", "first 5", "last 5", "now"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        table.add_column("since the start", no_wrap=True)
        for shown in SHOWN:
            values = self._run.values(shown.key)
            if values:
                first, last = fmean(values[:5]), fmean(values[-5:])
                gain = (last - first) * shown.better
                style = "" if gain == 0 or len(values) < 2 else "green" if gain > 0 else "yellow"
                table.add_row(
                    shown.label,
                    number(first),
                    Text(number(last), style),
                    number(values[-1]),
                    Text(sparkline(values, SPARK_WIDTH, plain=self._ascii()), "cyan"),
                )
        return table

    def _footer(self) -> list[Text]:
        sums = [(label, sum(self._run.values(key))) for key, label in TOTALS]
        faults = "   ".join(f"{label} {total:g}" for label, total in sums if total)
        return [Text(), Text(f"so far: {faults}", "yellow")] if faults else []


def sparkline(values: Sequence[float], width: int, *, plain: bool = False) -> str:
    """A curve in one line of at most `width` characters; longer series are averaged in bins."""
    levels = "_.-~=+*#" if plain else "".join(chr(0x2581 + i) for i in range(8))
    if not values:
        return ""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [fmean(values[a:b]) for a, b in pairwise(edges)]
    low, high = min(values), max(values)
    if high == low:
        return levels[3] * len(values)
    scale = (len(levels) - 1) / (high - low)
    return "".join(levels[round((value - low) * scale)] for value in values)


def _bar(done: int, total: int | None, style: str) -> ProgressBar:
    return ProgressBar(
        total=total or None,
        completed=done,
        width=30,
        pulse=not total,
        complete_style=style,
        finished_style=style,
        pulse_style=style,
    )
