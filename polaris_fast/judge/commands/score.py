"""`score FILE...`: what a judge thinks of stories on the disk, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ...text_stats import count_words
from ...types import Outcome, RowKind, Scored, UserError
from .. import rubric
from ..heuristic import DISCLAIMER
from ..jobs import JudgeJob
from .console import make_console
from .judging import judge_all
from .settings import add_config_option, load_settings
from .texts import Text, read_texts


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "score",
        help="judge stories on the disk",
        description="Judge .txt and .md files (a story each), .jsonl files (a line each, with "
        "`story` and perhaps `prompt`), folders of them, or - for standard input.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="files, folders or -")
    parser.add_argument("--prompt", default="", help="prompt of the stories that bring none")
    parser.add_argument("--samples", type=int, default=1, help="judgements a story, averaged")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of the table")
    add_config_option(parser)
    parser.set_defaults(run=run, takes_settings=True)


def run(options: argparse.Namespace) -> int:
    """Judge and print. 0: every story has its score; 1: some could not be scored.

    Raises:
        UserError: a file or a setting is wrong, or the judge cannot be used.
    """
    if options.samples < 1:
        raise UserError(f"--samples: must be at least 1, got {options.samples}")
    config = load_settings(options).judge
    texts = read_texts(options.files, options.prompt)
    if config.base_url is None:
        print(DISCLAIMER, file=sys.stderr)
    outcomes = judge_all(config, [_job(i, t, options.samples) for i, t in enumerate(texts)])
    if options.json:
        print(json.dumps([_as_dict(t, o) for t, o in zip(texts, outcomes, strict=True)], indent=1))
    else:
        make_console().print(_table(texts, outcomes))
    return 0 if all(isinstance(outcome, Scored) for outcome in outcomes) else 1


def _job(index: int, text: Text, samples: int) -> JudgeJob:
    # One by one: rows of a group share a fallback judge, and these have nothing in common.
    job_id = f"score/{index}"
    return JudgeJob(job_id, text.prompt, text.story, samples, RowKind.POLICY, group=job_id)


def _as_dict(text: Text, outcome: Outcome) -> dict[str, Any]:
    base = {"name": text.name, "prompt": text.prompt, "words": count_words(text.story)}
    if isinstance(outcome, Scored):
        return base | {
            "quality": outcome.quality,
            "dimensions": outcome.dimensions,
            "judge": outcome.judge,
            "flags": list(outcome.flags),
        }
    return base | {"quality": None, "outcome": type(outcome).__name__, "reason": outcome.reason}


def _table(texts: Sequence[Text], outcomes: Sequence[Outcome]) -> Table:
    judges = sorted({o.judge for o in outcomes if isinstance(o, Scored)})
    table = Table(box=None, header_style="dim", caption=f"judge: {', '.join(judges) or 'none'}")
    table.caption_justify = "left"
    table.add_column("story", overflow="fold")
    for name in ("words", "quality", "P", "N", "bonus", "penalty"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("remarks", style="yellow", overflow="fold")
    for text, outcome in zip(texts, outcomes, strict=True):
        words = f"{count_words(text.story):,}"
        if isinstance(outcome, Scored):
            table.add_row(text.name, words, *_numbers(outcome), ", ".join(outcome.flags))
        else:
            table.add_row(text.name, words, "-", "", "", "", "", f"not scored: {outcome.reason}")
    return table


def _numbers(scored: Scored) -> tuple[str, ...]:
    points = scored.dimensions
    positive = sum(points.get(name, 0.0) for name in rubric.POSITIVE)
    negative = sum(points.get(name, 0.0) for name in rubric.NEGATIVE)
    return (
        f"{scored.quality:.3f}",
        f"{positive:.1f}",
        f"{negative:.1f}",
        f"{points.get(rubric.BONUS, 0.0):.1f}",
        f"{points.get(rubric.PENALTY, 0.0):.1f}",
    )
