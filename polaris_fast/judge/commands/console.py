"""Where the commands print for people: texts as they are, tables wide in a pipe or a file."""

from __future__ import annotations

import sys

from rich.console import Console

WIDE = 160  # columns of a table that does not go to a terminal


def make_console() -> Console:
    """Of standard output. Square brackets and colons in names and reasons are no markup here."""
    width = None if sys.stdout.isatty() else WIDE
    return Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)
