"""`journal show|export|cost`: what was asked, answered, lost and paid, also while a run goes on."""

from __future__ import annotations

import argparse
import csv
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any, TextIO

from rich.table import Table

from ...types import UserError
from ..journal import queries
from .console import make_console

_JSON_COLUMNS = ("dimensions", "flags")


def add_parser(subparsers: Any) -> None:
    """Register the subcommand and its own three."""
    parser = subparsers.add_parser(
        "journal",
        help="look into the journal of judgements",
        description="Reads the journal without disturbing a run that writes to it.",
    )
    commands = parser.add_subparsers(dest="journal_command", required=True)
    show = commands.add_parser("show", help="jobs and requests by class, the latest failures")
    show.add_argument("--failures", type=int, default=5, metavar="N", help="list the latest N")
    export = commands.add_parser("export", help="every job or request as JSON lines or CSV")
    export.add_argument("--table", choices=("jobs", "attempts"), default="jobs")
    export.add_argument("--format", choices=("jsonl", "csv"), default="jsonl")
    export.add_argument("--output", type=Path, help="file to write; default: standard output")
    cost = commands.add_parser("cost", help="requests, tokens and USD by day and model")
    cost.add_argument("--json", action="store_true", help="JSON instead of the table")
    for command, function in ((show, _show), (export, _export), (cost, _cost)):
        command.add_argument(
            "path", nargs="?", type=Path, default=Path("runs"),
            help="the journal, a run's folder, or the folder of the runs (default: runs)",
        )  # fmt: skip
        command.add_argument("--run", dest="of_run", help="only jobs that this run asked for first")
        command.set_defaults(read=function)
    parser.set_defaults(run=run, takes_settings=False)


def run(options: argparse.Namespace) -> int:
    """Print what is asked for.

    Raises:
        UserError: there is no journal, it cannot be read, or it holds no such run.
    """
    path = queries.find_journal(options.path)
    with queries.reading(path) as connection:
        options.of_run = _resolved(options.of_run, queries.runs(connection), path)
        options.read(connection, path, options)
    return 0


def _resolved(name: str | None, runs: list[str], path: Path) -> str | None:
    """The run meant by its folder or by the folder's name."""
    if name is None:
        return None
    found = [run for run in runs if name == run] or [r for r in runs if Path(r).name == name]
    if len(found) != 1:
        known = ", ".join(found or runs[-5:]) or "none"
        raise UserError(f"--run: {path} holds {len(found)} runs {name!r}; give one of: {known}")
    return found[0]


# show ------------------------------------------------------------------------------------------


def _show(connection: sqlite3.Connection, path: Path, options: argparse.Namespace) -> None:
    of_run = options.of_run
    console = make_console()
    num_lost = queries.lost_attempts(connection, of_run)
    size_mib = path.stat().st_size / 2**20
    console.print(
        f"{path}  {size_mib:.1f} MiB, runs: {len(queries.runs(connection))}, answers lost in "
        f"kills: {num_lost}",
        soft_wrap=True,
    )
    console.print(_jobs_table(queries.jobs_by_state(connection, of_run)))
    console.print(_attempts_table(queries.attempts_by_class(connection, of_run)))
    failures = queries.last_failures(connection, options.failures, of_run)
    if failures:
        console.print(_failures_table(failures))


def _jobs_table(counts: list[queries.JobCount]) -> Table:
    table = _table("judge", "rows", right=(*queries.STATES, "mean quality"))
    for count in counts:
        states = [f"{count.states.get(state, 0):,}" for state in queries.STATES]
        table.add_row(count.judge_id, count.kind, *states, _number(count.quality, 3))
    return table


def _attempts_table(counts: list[queries.AttemptCount]) -> Table:
    total = sum(count.num_attempts for count in counts)
    table = _table("requests", "sent as", right=("number", "share", "p50 s", "p95 s"))
    for count in counts:
        table.add_row(
            count.fault,
            count.purpose,
            f"{count.num_attempts:,}",
            f"{count.num_attempts / total:.1%}",
            _number(count.p50_s, 2),
            _number(count.p95_s, 2),
        )
    return table


def _failures_table(failures: list[queries.FailedJob]) -> Table:
    table = _table("latest failures", "run", "row", "reason")
    for failed in failures:
        table.add_row(failed.failure, failed.run, failed.row_id, failed.reason)
    return table


# export ----------------------------------------------------------------------------------------


def _export(connection: sqlite3.Connection, path: Path, options: argparse.Namespace) -> None:
    if options.output is None:
        _write(connection, sys.stdout, options)
        return
    try:
        with options.output.open("w", encoding="utf-8", newline="") as file:
            _write(connection, file, options)
    except OSError as error:
        raise UserError(
            f"--output: cannot write {options.output} ({error.strerror}); give another file"
        ) from error


def _write(connection: sqlite3.Connection, file: TextIO, options: argparse.Namespace) -> None:
    columns, rows = queries.export_rows(connection, options.table, options.of_run)
    if options.format == "csv":
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
        return
    for row in rows:
        line = dict(zip(columns, row, strict=True))
        for name in _JSON_COLUMNS:
            if line.get(name) is not None:
                line[name] = json.loads(line[name])
        file.write(json.dumps(line) + "\n")


# cost ------------------------------------------------------------------------------------------


def _cost(connection: sqlite3.Connection, path: Path, options: argparse.Namespace) -> None:
    days = queries.costs_by_day(connection, options.of_run)
    if options.json:
        print(json.dumps([{n: getattr(d, n) for n in d.__dataclass_fields__} for d in days]))
        return
    tokens = ("prompt", "cached", "completion", "reasoning")
    numbers = (f"{name} tokens" for name in tokens)
    right = ("requests", "lost", "unpriced", *numbers, "USD", "probably")
    table = _table("day (UTC)", "model", right=right)
    for day in days:
        counts = [day.num_attempts, day.num_lost, day.num_unpriced]
        counts += [getattr(day, f"{name}_tokens") for name in tokens]
        usd = (_number(day.cost_usd, 4), f"{day.probable_usd:.4f}" if day.probable_usd else "")
        table.add_row(day.day, day.model, *(f"{n:,}" for n in counts), *usd)
    known = [day.cost_usd for day in days if day.cost_usd is not None]
    if known:
        table.caption = f"{sum(known):.4f} USD in all, as far as it is known"
        if probable := sum(day.probable_usd for day in days):
            table.caption += f"; {probable:.4f} of it probably: those answers never came"
    elif days:
        table.caption = "no prices: set judge.price_input and judge.price_output before a run"
    table.caption_justify = "left"
    make_console().print(table)


# small things ----------------------------------------------------------------------------------


def _table(*left: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
