"""Ctrl-C and termination, taken at safe points: the weights are never left half updated."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequested(Exception):
    """The run was asked to end; raised between two safe operations only."""


class StopFlag:
    """Set by the first SIGINT or SIGTERM; a second one ends the process at once."""

    def __init__(self) -> None:
        self._signal: int | None = None

    def check(self) -> None:
        """Raise StopRequested when a stop was asked for."""
        if self._signal is not None:
            raise StopRequested(signal.Signals(self._signal).name)

    @contextmanager
    def installed(self) -> Iterator[StopFlag]:
        """Handle the signals while the block runs; outside the main thread nothing is changed."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._signal = number
