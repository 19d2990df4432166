"""One self-contained HTML page about a run: `write_report`, or `python -m polaris_fast.report`.

folder (what is on the disk) -> verdict, attention, stories (what to say) + charts (what to draw)
-> render (one page). Matplotlib is imported by `write_report`, not by importing this package.
"""

from __future__ import annotations

from .render import REPORT_FILE, write_report

__all__ = ["REPORT_FILE", "write_report"]
