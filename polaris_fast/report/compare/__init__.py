"""One page about several runs: `write_comparison`, or `python -m polaris_fast.report RUN RUN`.

runs (what is compared, under which names) -> curves, tables, stories -> page
"""

from __future__ import annotations

from .page import COMPARISON_FILE, write_comparison

__all__ = ["COMPARISON_FILE", "write_comparison"]
