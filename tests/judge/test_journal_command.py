"""`journal show|export|cost` on a journal that is being written, and on what is none."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from polaris_fast.judge import JudgeJob
from polaris_fast.judge.commands import journal as command
from polaris_fast.judge.journal import AttemptRecord, Journal, Purpose, queries
from polaris_fast.types import Failed, RowKind, Scored, UserError

DAY_S = 86_400.0


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(["journal", *map(str, words)])
    assert options.takes_settings is False
    return options.run(options)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """A folder of runs whose journal is open in a process that still writes to it."""
    now = 0.0
    folder = tmp_path / "runs"
    (folder / "a").mkdir(parents=True)
    with Journal(folder / "judge_journal.sqlite", run="a", clock=lambda: now) as journal:

        def judge(row: int, kind: RowKind = RowKind.POLICY) -> str:
            job = JudgeJob(f"1/0/{row}", "p", "A story.", kind=kind, group="0")
            journal.begin(f"key{row}", job=job, sample=0, judge_id="j@host", model="j")
            return f"key{row}"

        def attempt(key: str, record: AttemptRecord, scored: Scored | None = None) -> None:
            journal.end_attempt(journal.begin_attempt(key, number=1), record, scored)

        tokens = {"prompt_tokens": 1000, "cached_tokens": 800, "completion_tokens": 50}
        for row in range(4):
            record = AttemptRecord(
                status=200, model="j-1", total_s=1.0 + row, cost_usd=0.25, text="two\nlines, [b]",
                **tokens,
            )  # fmt: skip
            attempt(judge(row, RowKind.HUMAN), record, Scored(0.5, {"P1": 3.0}, "j-1", ("f",)))
        now = DAY_S
        attempt(judge(4), AttemptRecord(status=200, model="j-1"), Scored(0.1))
        attempt(judge(5), AttemptRecord(fault="timeout", total_s=9.0, cost_usd=0.5))
        journal.end("key5", Failed("no answer within 9 s [bold]", "timeout"))
        journal.begin_attempt(judge(6), number=1, purpose=Purpose.RETRY)
        yield folder


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip()]


def test_show_counts_jobs_and_requests_by_class(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("show", runs) == 0
    shown = lines(capsys.readouterr().out)
    assert ["j@host", "human", "4", "0", "0", "0", "0.500"] in shown
    assert ["j@host", "policy", "1", "1", "0", "1", "0.100"] in shown
    assert ["answered", "first", "5", "71.4%", "2.00", "4.00"] in shown
    assert ["timeout", "first", "1", "14.3%", "9.00", "9.00"] in shown
    assert ["open", "retry", "1", "14.3%", "-", "-"] in shown
    assert ["timeout", "a", "1/0/5", *"no answer within 9 s [bold]".split()] in shown


def test_cost_by_day_and_model(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cost", runs) == 0
    out = capsys.readouterr().out
    shown = lines(out)
    assert [
        "1970-01-01", "j-1", "4", "0", "0", "4,000", "3,200", "200", "0", "1.0000",
    ] in shown  # fmt: skip
    assert ["1970-01-02", "j", "2", "1", "0", "0", "0", "0", "0", "0.5000", "0.5000"] in shown
    assert ["1970-01-02", "j-1", "1", "0", "1", "0", "0", "0", "0", "-"] in shown
    assert "1.5000 USD in all" in out and "0.5000 of it probably" in " ".join(out.split())
    assert run("cost", runs, "--json") == 0
    days = json.loads(capsys.readouterr().out)
    assert [day["cost_usd"] for day in days] == [1.0, 0.5, None]
    assert [day["probable_usd"] for day in days] == [0.0, 0.5, 0.0]


def test_export_as_json_lines_and_csv(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", runs) == 0
    jobs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [job["state"] for job in jobs] == ["scored"] * 5 + ["failed", "pending"]
    assert jobs[0]["dimensions"] == {"P1": 3.0} and jobs[0]["flags"] == ["f"]
    assert jobs[6]["dimensions"] is None

    file = runs / "attempts.csv"
    arguments = ["--table", "attempts", "--format", "csv", "--output", file]
    assert run("export", runs, *arguments) == 0
    attempts = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [attempt["key"] for attempt in attempts] == [f"key{row}" for row in range(7)]
    assert attempts[0]["text"] == "two\nlines, [b]"
    assert (attempts[5]["fault"], attempts[5]["status"]) == ("timeout", "")


@pytest.mark.parametrize("place", [".", "a", "judge_journal.sqlite"])
def test_the_journal_is_found_by_runs_run_and_file(runs: Path, place: str) -> None:
    assert queries.find_journal(runs / place) == runs / "judge_journal.sqlite"


def test_only_one_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(runs / "judge_journal.sqlite", run="here/b") as other:
        job = JudgeJob("1/0/0", "p", "A story.")
        other.begin("other", job=job, sample=0, judge_id="j", model="j")
    assert run("export", runs, "--run", "b") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    with pytest.raises(UserError, match=r"--run: .* holds 0 runs 'c'; give one of: a, here/b"):
        run("show", runs, "--run", "c")


def test_reading_changes_nothing_and_blocks_nobody(runs: Path) -> None:
    path = runs / "judge_journal.sqlite"
    with queries.reading(path) as connection:
        before = queries.jobs_by_state(connection)
        with Journal(path) as writer:
            job = JudgeJob("9/0/0", "p", "A story.")
            writer.begin("meanwhile", job=job, sample=0, judge_id="j", model="j")
        assert queries.jobs_by_state(connection) == before  # one moment of the journal
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM jobs")


def test_an_archived_journal_in_a_read_only_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "judge_journal.sqlite"
    Journal(path).open().close()
    real = sqlite3.connect

    def as_in_a_read_only_folder(address: str, **options: object) -> sqlite3.Connection:
        if "immutable" not in address:
            address = f"file:{tmp_path / 'gone' / 'x'}?mode=ro"
        return real(address, **options)

    monkeypatch.setattr(queries.sqlite3, "connect", as_in_a_read_only_folder)
    with queries.reading(path) as connection:
        assert queries.jobs_by_state(connection) == []


def test_what_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"judge\.journal: .*there is no journal"):
        run("show", tmp_path)
    (tmp_path / "notes.txt").write_text("not a database " * 100)
    with pytest.raises(UserError, match="no SQLite file"):
        run("show", tmp_path / "notes.txt")
    sqlite3.connect(tmp_path / "empty.sqlite").close()
    with pytest.raises(UserError, match="an earlier version, or none yet"):
        run("show", tmp_path / "empty.sqlite")


def test_an_output_that_cannot_be_written(runs: Path) -> None:
    with pytest.raises(UserError, match=r"--output: cannot write .*not[ _]there"):
        run("export", runs, "--output", runs / "not there" / "x.jsonl")
    assert os.listdir(runs / "a") == []
