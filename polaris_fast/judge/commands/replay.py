"""`replay RUN_DIR`: judge a run's stories again with another judge, and compare the two."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ...report.folder import RunFolder, read_run
from ...types import Failed, Outcome, Rejected, RowKind, Scored, UserError
from ..agreement import Agreement, compare
from ..jobs import JudgeJob
from .console import make_console
from .judging import judge_all
from .settings import add_config_option, load_settings

HTML_FILE = "replay.html"


@dataclass(frozen=True)
class OldRow:
    """One story of the run with the score it had."""

    step: int
    group: int
    row_id: str
    kind: RowKind
    prompt: str
    story: str
    quality: float


@dataclass(frozen=True)
class Pair:
    """A story with both scores."""

    row: OldRow
    quality: float


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "replay",
        help="judge a run's stories again with another judge and compare",
        description="Judge the stories of a run again and compare scores: rank correlation, mean "
        "shift, and how many orders inside a group turn, which is what training would have seen.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of a run")
    parser.add_argument("--steps", default=":", help="A:B, the steps from A to B, both included")
    parser.add_argument("--every", type=int, default=1, help="only every N-th of these steps")
    parser.add_argument("--samples", type=int, default=1, help="judgements a story, averaged")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of the table")
    parser.add_argument("--html", metavar="FILE", help=f"the chart; default RUN_DIR/{HTML_FILE}")
    add_config_option(parser)
    parser.set_defaults(run=run, takes_settings=True)


def run(options: argparse.Namespace) -> int:
    """Judge, compare, print, draw. 0: every story has its score; 1: some could not be scored.

    Raises:
        UserError: no such run or nothing in it to judge, a wrong setting, or the judge fails.
    """
    for name in ("samples", "every"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: must be at least 1, got {getattr(options, name)}")
    config = load_settings(options).judge
    folder = read_run(options.run_dir)
    rows = list(_old_rows(folder, _chosen_steps(folder, options.steps, options.every)))
    if not rows:
        raise UserError(f"{options.run_dir}: no scored story in the steps {options.steps}")
    outcomes = judge_all(config, [_job(row, options.samples) for row in rows], run_dir=folder.path)
    pairs = [
        Pair(row, outcome.quality)
        for row, outcome in zip(rows, outcomes, strict=True)
        if isinstance(outcome, Scored)
    ]
    missing = [o for o in outcomes if isinstance(o, Failed | Rejected)]
    if not pairs:
        raise UserError(f"the judge scored none of {len(rows)} stories: {missing[0].reason}")
    found = compare_pairs(pairs)
    judges = (_judge_of_run(folder), _judge_of(outcomes))
    from .replay_page import write_page  # matplotlib takes a second

    page = write_page(Path(options.html or folder.path / HTML_FILE), pairs, found, judges)
    if options.json:
        print(json.dumps(_as_dict(pairs, found, judges, missing), indent=1))
    else:
        make_console().print(table_of(found, judges, len(missing)))
        print(f"chart: {page}")
    return 1 if missing else 0


def compare_pairs(pairs: Sequence[Pair]) -> Agreement:
    """Agreement over the model's stories; a group is a prompt of a step.

    Human rows stay out: group statistics are the model's. Raises UserError without any.
    """
    policy = [pair for pair in pairs if pair.row.kind is RowKind.POLICY]
    if not policy:
        raise UserError("replay: the judge scored none of the model's own stories")
    return compare(
        [pair.row.quality for pair in policy],
        [pair.quality for pair in policy],
        [(pair.row.step, pair.row.group) for pair in policy],
    )


def table_of(found: Agreement, judges: tuple[str, str], num_missing: int) -> Table:
    """The comparison for people."""
    table = Table(box=None, show_header=False, title=f"{judges[1]} against {judges[0]}")
    table.title_justify = "left"
    table.add_column(style="dim")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    between = f"95 %: {_number(found.spearman_low)} to {_number(found.spearman_high)}"
    for name, value, remark in (
        ("model's stories", f"{found.num_stories:,}", f"in {found.num_groups:,} groups"),
        ("not scored", f"{num_missing:,}" if num_missing else "", ""),
        ("Spearman's rho", _number(found.spearman), between if found.spearman_low else ""),
        ("mean shift", f"{found.mean_shift:+.3f}", "harmless inside a group"),
        ("spread inside groups", _number(found.spread_ratio), "new / old"),
        ("turned orders", _percent(found.flipped_pairs), "of the pairs of a group"),
        ("changed sides", _percent(found.flipped_signs), "of stories: advantage's sign"),
        ("another best story", _percent(found.changed_best), "of groups"),
    ):
        if value:
            table.add_row(name, value, remark)
    return table


def _chosen_steps(folder: RunFolder, steps: str, every: int) -> list[int]:
    first, colon, last = steps.partition(":")
    try:
        low = int(first) if first else 0
        high = (int(last) if last else sys.maxsize) if colon else low
    except ValueError:
        raise UserError(f"--steps: want A:B or one step, got {steps!r}") from None
    return [step for step in folder.story_files if low <= step <= high][::every]


def _old_rows(folder: RunFolder, steps: Sequence[int]) -> Iterator[OldRow]:
    """Stories that had a score; what never went to a judge (empty ones) stays out."""
    for step in steps:
        for row in folder.stories(step):
            quality, story = row.get("quality"), str(row.get("story") or "")
            if isinstance(quality, int | float) and math.isfinite(quality) and story.strip():
                yield OldRow(
                    step=step,
                    group=int(row["group"]),
                    row_id=str(row["row_id"]),
                    kind=RowKind(row["kind"]),
                    prompt=str(row["prompt"]),
                    story=story,
                    quality=float(quality),
                )


def _job(row: OldRow, samples: int) -> JudgeJob:
    group = f"{row.step}/{row.group}"
    return JudgeJob(row.row_id, row.prompt, row.story, samples, row.kind, group=group)


def _judge_of_run(folder: RunFolder) -> str:
    function = folder.setting("reward.function")
    return str(function or folder.setting("judge.model", "the run's judge"))


def _judge_of(outcomes: Sequence[Outcome]) -> str:
    return ", ".join(sorted({o.judge for o in outcomes if isinstance(o, Scored)}))


def _as_dict(
    pairs: Sequence[Pair],
    found: Agreement,
    judges: tuple[str, str],
    missing: Sequence[Failed | Rejected],
) -> dict[str, Any]:
    return {
        "old_judge": judges[0],
        "new_judge": judges[1],
        "not_scored": len(missing),
        "agreement": asdict(found),
        "stories": [
            {
                "step": pair.row.step,
                "group": pair.row.group,
                "row_id": pair.row.row_id,
                "kind": pair.row.kind.value,
                "old_quality": pair.row.quality,
                "new_quality": pair.quality,
            }
            for pair in pairs
        ],
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
