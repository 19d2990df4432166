"""How good and how long stories are: `python -m polaris_fast.evaluate --model M --data D`.

    models -> writing (stories, resumable) -> quality, dimensions, pairwise (judge calls)
           -> measures (text alone) -> summary (means a bucket, bootstrap intervals, slopes)
           -> table, page

`held_out` is the evaluation inside a training run; it takes its measures from here, too.
"""

from __future__ import annotations

from .held_out import evaluate, known_metrics, write_evaluation

__all__ = ["evaluate", "known_metrics", "write_evaluation"]
