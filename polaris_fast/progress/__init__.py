"""What the terminal shows while a run goes on: a live view, plain lines, or nothing.

All views keep the same numbers and differ in how they show them. Every method may be called from
any thread. Ctrl-C passes through a view; `stop` (or leaving the `with` block, or the end of the
process) gives the terminal back as it was.
"""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console

from .base import Progress
from .live import LiveView
from .plain import PlainView, QuietView

__all__ = ["LiveView", "PlainView", "Progress", "QuietView", "make_view"]


def make_view(enabled: bool, stream: TextIO | None = None) -> Progress:
    """The live view on a terminal, plain lines elsewhere, only warnings when not `enabled`.

    Args:
        enabled: the configuration's `progress`.
        stream: where to write; None: stderr, so that stdout stays free for results.
    """
    out = stream or sys.stderr
    if not enabled:
        return QuietView(out)
    if out.isatty():
        console = Console(file=out)
        if not console.is_dumb_terminal:
            return LiveView(console)
    return PlainView(out)
