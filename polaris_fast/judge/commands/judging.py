"""Judging many stories from the command line: all at once, with a bar, and a clean Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...config import JudgeConfig
from ...types import Outcome, Scored
from ..jobs import JudgeJob
from ..journal import journal_path
from ..pool import JudgePool


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while stories were judged; the message says how far it came."""


def judge_all(
    config: JudgeConfig, jobs: Sequence[JudgeJob], *, run_dir: Path | None = None
) -> list[Outcome]:
    """Outcomes in the order of the jobs; a bar on stderr when that is a terminal.

    Args:
        config: the judge; its journal is kept where it is named.
        jobs: what to judge, all at once.
        run_dir: folder of a run, whose journal is used unless the configuration names another.

    Raises:
        UserError: the judge cannot be used.
        Interrupted: Ctrl-C.
    """
    futures: list[Future[Outcome]] = []
    with JudgePool(config, run_dir=run_dir) as pool, _bar() as bar:
        task = bar.add_task("judging", total=len(jobs), trouble="")
        try:
            futures += map(pool.submit, jobs)
            missed = 0
            for done in as_completed(futures):
                missed += not isinstance(done.result(), Scored)
                bar.update(task, advance=1, trouble=f"{missed} not scored" if missed else "")
        except KeyboardInterrupt:
            scored = sum(f.done() and isinstance(f.result(), Scored) for f in futures)
            kept = journal_path(config.journal, run_dir) is not None
            raise Interrupted(_how_far(scored, len(jobs), kept=kept)) from None
    return [future.result() for future in futures]


def _how_far(scored: int, total: int, *, kept: bool) -> str:
    after = (
        "what was judged is in the journal, and the same command goes on from there"
        if kept
        else "nothing was kept; name a file with --judge.journal to go on from where it stopped"
    )
    return f"{scored} of {total} stories were judged; {after}"


def _bar() -> Progress:
    console = Console(file=sys.stderr)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[yellow]{task.fields[trouble]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
