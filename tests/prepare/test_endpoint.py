"""Prompts from an endpoint: checked, asked for again, journaled, and never paid for twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from polaris_fast.prepare.__main__ import main
from polaris_fast.prepare.prompts.leak import find_leak

from .books import prose
from .writer_double import Messages, WriterDouble, writer_double

GOOD = (
    "A keeper on a far island finds that somebody has been moving his things at night. Follow him "
    "closely through one winter, in a calm voice, and let the reader doubt what he sees."
)
PLAN = "I want a calm voice and a slow beginning. " * 15
Run = Callable[..., int]


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    for i in range(4):
        (folder / f"tale-{i}.md").write_text(f"# Tale {i}\n\n{prose(i, 150)}\n")
    return folder


@pytest.fixture
def run(books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command against an endpoint; more words are appended."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")

    def command(double: WriterDouble, *more: str) -> int:
        return main(
            [str(books), "--out", str(tmp_path / "data"), "--min-words", "100", "--overwrite",
             "--endpoint", double.base_url, "--model", "writer", *more]
        )  # fmt: skip

    return command


def records(tmp_path: Path) -> list[dict]:
    found = []
    for name in ("train.jsonl", "test.jsonl"):
        path = tmp_path / "data" / name
        found += [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    return found


def is_plan(messages: Messages) -> bool:
    return messages[0]["content"].startswith("You are given a request")


def test_prompts_and_plans_are_written_and_priced(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with writer_double(lambda m, n: PLAN if is_plan(m) else f"Prompt: {GOOD}") as double:
        prices = ("--price-input", "1", "--price-output", "10")
        assert run(double, "--reasoning", *prices) == 0
    assert all(r["prompt"] == GOOD and r["reasoning"] == PLAN.strip() for r in records(tmp_path))
    assert double.keys == {"Bearer sk-secret-of-the-test"}
    told = capsys.readouterr()
    assert "8 calls, about" in told.err and "USD" in told.err
    # 8 calls of 1,000 tokens in and 100 out: 8 * (1000 * 1 + 100 * 10) / 1e6
    assert "8 calls, 0 answers from the journal, 0.0160 USD" in told.out
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"sk-secret" not in path.read_bytes(), path


def test_a_leaking_prompt_is_asked_for_once_more_with_its_phrase(
    run: Run, books: Path, tmp_path: Path
) -> None:
    def reply(messages: Messages, n: int) -> str:
        story = messages[1]["content"].split("\n\n", 1)[1]
        stolen = " ".join(story.split()[20:32])
        stubborn = "Tale 0" in messages[1]["content"]
        return GOOD if len(messages) > 2 and not stubborn else f"{GOOD} Begin so: {stolen}"

    with writer_double(reply) as double:
        assert run(double) == 0
    again = [m for m in double.asked if len(m) == 4]
    assert len(double.asked) == 8 and len(again) == 4
    assert all("it uses the story's own words" in m[3]["content"] for m in again)
    by_title = {r["title"]: r for r in records(tmp_path)}
    assert by_title["Tale 0"]["prompt_from"] == "extractive"
    assert {by_title[f"Tale {i}"]["prompt"] for i in (1, 2, 3)} == {GOOD}
    assert all(find_leak(r["prompt"], r["story"]) is None for r in by_title.values())
    card = (tmp_path / "data" / "DATA_CARD.md").read_text()
    assert "endpoint, extracted: leak: 1" in card and "endpoint, asked again: leak: 4" in card


def test_a_second_run_pays_for_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with writer_double(lambda m, n: GOOD) as double:
        assert run(double) == 0 and len(double.asked) == 4
        assert run(double) == 0 and len(double.asked) == 4
    assert "0 calls, 4 answers from the journal" in capsys.readouterr().out


def test_what_was_answered_before_a_failure_is_kept(run: Run, tmp_path: Path) -> None:
    """A refused key ends the run at once; the data set appears only when all is there."""
    with writer_double(lambda m, n: GOOD if n < 2 else 401) as double:
        assert run(double, "--concurrency", "1") == 2
        assert not (tmp_path / "data").exists()
        asked = len(double.asked)
        double.reply = lambda m, n: GOOD
        assert run(double, "--concurrency", "1") == 0
    assert asked == 3 and len(double.asked) == 5


def test_a_server_error_is_tried_again(run: Run, tmp_path: Path) -> None:
    with writer_double(lambda m, n: 503 if n == 0 else GOOD) as double:
        assert run(double, "--concurrency", "1") == 0
    assert len(double.asked) == 5
    assert {r["prompt_from"] for r in records(tmp_path)} == {"endpoint"}


def test_the_budget_is_never_passed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A call costs .002 USD here and .083 at most: after two of them the third might pass .085."""
    with writer_double(lambda m, n: GOOD) as double:
        more = ("--price-input", "1", "--price-output", "10", "--max-cost", "0.085")
        assert run(double, *more) == 2
    assert len(double.asked) == 2
    assert "--max-cost" in capsys.readouterr().err


def test_an_endpoint_that_counts_no_tokens_spends_the_budget_all_the_same(
    run: Run, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with writer_double(lambda m, n: GOOD) as double:
        double.tells_usage = False
        more = ("--price-input", "1", "--price-output", "10", "--max-cost", "0.2")
        assert run(double, *more) == 2
    assert len(double.asked) == 2  # .083 USD each at most
    assert "--max-cost" in capsys.readouterr().err
    assert caplog.text.count("does not count the tokens") == 1


def test_the_estimate_asks_nothing(run: Run, tmp_path: Path) -> None:
    with writer_double(lambda m, n: GOOD) as double:
        assert run(double, "--estimate") == 0
    assert not double.asked and not (tmp_path / "data").exists()


def test_an_unknown_model_is_named_before_anything_is_read(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with writer_double(lambda m, n: GOOD) as double:
        assert run(double, "--model", "other") == 2
    assert "--model:" in capsys.readouterr().err and not double.asked


def test_kill_9_loses_no_answer(books: Path, tmp_path: Path) -> None:
    """Killed in the middle, the next run asks only for what had not been answered."""
    command = [
        sys.executable, "-m", "polaris_fast.prepare", str(books), "--out", str(tmp_path / "data"),
        "--min-words", "100", "--model", "writer", "--concurrency", "1",
    ]  # fmt: skip
    with writer_double(lambda m, n: GOOD, latency_s=0.3) as double:
        command += ["--endpoint", double.base_url]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while len(double.asked) < 3 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "data").exists()
        asked, double.latency_s = len(double.asked), 0.0
        assert main(command[3:]) == 0
    # Two were answered; the third, which was under way, is the only one that is sent again.
    assert asked == 3 and len(double.asked) == 3 + 2
