"""Views for where nothing can be redrawn: lines for a log, or warnings only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TextIO

from .base import SHOWN, TOTALS, View, clock, number
from .judge import Look, State

PLAIN_INTERVAL_S = 10.0  # a phase line is due after so long without any line


class LineView(View):
    """What both have: warnings, and a line when the judge's state changes."""

    def __init__(
        self, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(now)
        self._stream = stream or sys.stderr
        self._printed = now()  # when the last line was
        self._judge_state = State.WELL

    def tick(self) -> None:
        """A line when the judge gets into trouble or out of it."""
        with self._run.lock:
            look = self._judge.look() if self._judge is not None else Look()
            if look.state is self._judge_state:
                return
            self._judge_state = look.state
            if look.troubles:
                self.warn(f"judge: {look}")
            else:
                self._print("judge: well again")

    def warn(self, text: str) -> None:
        """One line."""
        with self._run.lock:
            self._print(f"warning: {text}")

    def _print(self, text: str) -> None:
        with suppress(OSError):  # nobody reads any more; the run is worth more than its lines
            print(text, file=self._stream, flush=True)
        self._printed = self._run.now()


class QuietView(LineView):
    """Shows warnings only."""

    def start(
        self,
        title: str,
        facts: Mapping[str, str],
        total_steps: int,
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Shows nothing."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Shows nothing."""

    def advance(self, n: int = 1, *, phase: str | None = None, **info: Any) -> None:
        """Shows nothing."""

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows nothing."""

    def note(self, text: str) -> None:
        """Shows nothing."""


class PlainView(LineView):
    """One line a step, and a phase line whenever nothing was printed for a while; for logs."""

    def __init__(
        self, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream, now)
        self._announced: set[str] = set()

    def start(
        self,
        title: str,
        facts: Mapping[str, str],
        total_steps: int,
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """The title and the facts, one a line."""
        with self._run.lock:
            self._run.start(title, facts, total_steps, history)
            self._print(title)
            for name, value in facts.items():
                self._print(f"  {name}: {value}")

    def phase(self, name: str, total: int | None = None) -> None:
        """Announced once in a run: a phase of every step would fill the log."""
        with self._run.lock:
            phase = self._run.phase(name, total)
            if name not in self._announced:
                self._announced.add(name)
                self._print(f"{name} {phase.count()}".rstrip())

    def advance(self, n: int = 1, *, phase: str | None = None, **info: Any) -> None:
        """A line when the last one is `PLAIN_INTERVAL_S` old."""
        with self._run.lock:
            now_in = self._run.advance(n, phase, info)
            if self._run.now() - self._printed >= PLAIN_INTERVAL_S:
                self._print(f"{now_in.name} {now_in.count()}  {now_in.details()}".rstrip())

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line."""
        with self._run.lock:
            self._run.step(step, metrics)
            parts = [f"step {step}/{self._run.total_steps}"]
            parts += [
                f"{shown.label} {number(metrics[shown.key])}"
                for shown in SHOWN
                if metrics.get(shown.key) is not None
            ]
            parts += [f"{label} {metrics[key]:g}" for key, label in TOTALS if metrics.get(key)]
            eta = self._run.eta_s()
            parts += [f"left {clock(eta)}"] if eta is not None else []
            self._print("  ".join(parts))

    def note(self, text: str) -> None:
        """One line."""
        with self._run.lock:
            self._print(text)
