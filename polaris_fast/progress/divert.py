"""Keeps other writers (log handlers, warnings, tqdm) from tearing the live panel apart."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text


class _Above(io.TextIOBase):
    """A stream whose whole lines are printed above the live panel.

    Lines that rewrite themselves with a carriage return (tqdm) appear once, in their last state.
    """

    def __init__(self, console: Console, stream: TextIO) -> None:
        self._console = console
        self._stream = stream
        self._rest = ""
        self._guard = threading.Lock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._guard:
            *lines, self._rest = (self._rest + text).split("\n")
            self._rest = self._rest.rpartition("\r")[2]
        for line in lines:
            self._console.print(Text.from_ansi(line.rstrip("\r").rpartition("\r")[2]))
        return len(text)

    def finish(self) -> None:
        """Print what never got its newline."""
        if self._rest:
            self.write("\n")


def divert(console: Console) -> list[Callable[[], object]]:
    """Send terminal output through the console; returns the calls that undo it, last one first."""
    undo: list[Callable[[], object]] = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not stream.isatty():  # a file or a pipe cannot disturb the panel
            continue
        above = _Above(console, stream)
        undo.append(lambda name=name, stream=stream: setattr(sys, name, stream))  # type: ignore[misc]
        setattr(sys, name, above)
        for handler in _handlers_on(stream):
            undo.append(lambda h=handler, stream=stream: h.setStream(stream))  # type: ignore[misc]
            handler.setStream(above)
        undo.append(above.finish)
    return undo


def _handlers_on(stream: TextIO) -> list[logging.StreamHandler[Any]]:
    """Log handlers that took hold of `stream` earlier, such as transformers'."""
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    handlers = {handler for logger in loggers for handler in logger.handlers}
    return [h for h in handlers if isinstance(h, logging.StreamHandler) and h.stream is stream]
