"""How good and how long stories are: `python -m polaris_fast.evaluate --model M --data D`.

    options, setup          what is asked for, read and checked before anything is loaded
    writing, served         stories by either engine, each kept in `store` as it ends
    judging                 Story Quality; S_Q (`dimensions`) and `pairwise` through `asking`
    measures                what the text alone tells
    summary, results        means a bucket with `bootstrap` intervals and slopes, as JSON
    table, page, plots      the same for people; nothing is computed there

`held_out` is the evaluation inside a training run; it takes its measures from here, too.
"""

from __future__ import annotations

from .held_out import evaluate, known_metrics, write_evaluation

__all__ = ["evaluate", "known_metrics", "write_evaluation"]
