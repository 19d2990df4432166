"""The journal keeps rewards and requests, serves only rewards, and never a secret."""

from __future__ import annotations

import hashlib
import math
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from polaris_fast.config import JudgeConfig
from polaris_fast.judge import JudgeJob, rubric
from polaris_fast.judge.journal import (
    AttemptRecord,
    Journal,
    Purpose,
    job_key,
    judge_id,
    sampling_of,
    schema_version,
)
from polaris_fast.types import Failed, Rejected, RowKind, Scored

JOB = JudgeJob("3/0/2", "A prompt.", "Four words of story.", kind=RowKind.HUMAN, group="0")
SCORED = Scored(0.1 + 0.2, {"P2": 7.0, "P1": 1 / 3}, "judge-7", ("total_mismatch", "quote:P3"))
RECORD = AttemptRecord(
    status=200, request_id="req-1", model="judge-7", queue_s=0.5, first_byte_s=0.1, total_s=2.5,
    prompt_tokens=100, cached_tokens=60, completion_tokens=10, reasoning_tokens=4,
    cost_usd=0.001, text='{"P1": 1}',
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path, run="run-a") as opened:
        yield opened


def begin(journal: Journal, key: str = "k", job: JudgeJob = JOB) -> None:
    journal.begin(key, job=job, sample=0, judge_id="judge@host", model="judge")


def score(journal: Journal, key: str = "k", scored: Scored = SCORED) -> None:
    begin(journal, key)
    journal.end_attempt(journal.begin_attempt(key, number=1), RECORD, scored)


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@pytest.fixture
def killed(path: Path) -> Iterator[Journal]:
    """A journal whose process is as good as killed: it is closed only after the test."""
    journal = Journal(path).open()
    yield journal
    journal.close()


def dead(path: Path) -> Journal:
    """A journal as the next process finds it: every session before it was killed."""
    return Journal(path, is_alive=lambda token: False)


# rewards ---------------------------------------------------------------------------------------


def test_a_reward_is_served_as_it_was_given_by_another_process_too(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.lookup("k") is None
        score(journal)
        assert journal.lookup("k") == SCORED
    with Journal(path) as journal:
        assert journal.lookup("k") == SCORED
        assert list(journal.lookup("k").dimensions) == ["P2", "P1"]
        assert journal.lookup("other") is None


@pytest.mark.parametrize("outcome", [Failed("no answer", "timeout"), Rejected("refused")])
def test_a_failure_is_kept_but_never_served_and_may_be_tried_again(
    journal: Journal, path: Path, outcome: Failed | Rejected
) -> None:
    begin(journal)
    journal.end_attempt(journal.begin_attempt("k", number=1), AttemptRecord(fault="timeout"))
    journal.end("k", outcome)
    assert journal.lookup("k") is None
    state, reason, ended_at = rows(path, "SELECT state, reason, ended_at FROM jobs")[0]
    assert state == type(outcome).__name__.lower()
    assert reason == outcome.reason and ended_at is not None
    score(journal)
    assert journal.lookup("k") == SCORED
    assert rows(path, "SELECT failure, reason FROM jobs") == [(None, None)]


def test_a_scored_job_stays_scored_and_its_first_reward_stays(journal: Journal) -> None:
    score(journal)
    begin(journal)
    journal.end("k", Failed("a late hedge", "cancelled"))
    journal.end("k", SCORED)
    assert journal.lookup("k") == SCORED
    journal.end_attempt(
        journal.begin_attempt("k", number=2, purpose=Purpose.HEDGE), RECORD, Scored(0.9)
    )
    assert journal.lookup("k") == SCORED


@pytest.mark.parametrize("quality", [math.nan, math.inf])
def test_what_is_no_number_is_no_reward(journal: Journal, quality: float) -> None:
    begin(journal)
    attempt = journal.begin_attempt("k", number=1)
    with pytest.raises(ValueError, match="must be finite"):
        journal.end_attempt(attempt, RECORD, Scored(quality))
    assert journal.lookup("k") is None


def test_all_fields_of_job_and_attempt_are_kept(journal: Journal, path: Path) -> None:
    score(journal)
    job = rows(path, "SELECT key, state, run, row_id, kind, row_group, sample, words FROM jobs")[0]
    assert job == ("k", "scored", "run-a", "3/0/2", "human", "0", 0, 4)
    (attempt,) = rows(
        path,
        "SELECT number, purpose, status, fault, request_id, model, queue_s, first_byte_s, total_s,"
        " prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, cost_usd, text "
        "FROM attempts",
    )
    assert attempt == (
        1, "first", 200, None, "req-1", "judge-7", 0.5, 0.1, 2.5, 100, 60, 10, 4, 0.001,
        '{"P1": 1}',
    )  # fmt: skip


def test_any_text_can_be_kept(journal: Journal, path: Path) -> None:
    begin(journal)
    odd = "nul \0, emoji \U0001f600, half of one \ud83d"
    journal.end_attempt(journal.begin_attempt("k", number=1), AttemptRecord(text=odd))
    journal.end("k", Failed(odd))
    assert rows(path, "SELECT text FROM attempts") == [(odd.replace("\ud83d", "\\ud83d"),)]


def test_the_calls_keep_their_order(journal: Journal) -> None:
    with pytest.raises(KeyError, match="call begin first"):
        journal.begin_attempt("nobody", number=1)
    begin(journal)
    with pytest.raises(ValueError, match="whim"):
        journal.begin_attempt("k", number=1, purpose="whim")
    journal.close()
    journal.close()
    with pytest.raises(RuntimeError, match="not open"):
        journal.lookup("k")


# kills -----------------------------------------------------------------------------------------


def test_an_attempt_without_an_end_is_lost_and_counted_once(path: Path, killed: Journal) -> None:
    score(killed, "done")
    begin(killed, "half")
    killed.begin_attempt("half", number=1)
    begin(killed, "hardly")
    with dead(path) as after:
        assert after.num_lost_found == after.lost_attempts() == 1
        assert after.lookup("done") == SCORED
        assert after.lookup("half") is after.lookup("hardly") is None
    with dead(path) as later:
        assert (later.num_lost_found, later.lost_attempts()) == (0, 1)


def test_attempts_of_a_process_that_still_runs_are_not_lost(path: Path) -> None:
    with Journal(path) as first, Journal(path) as second:
        begin(first)
        attempt = first.begin_attempt("k", number=1)
        with Journal(path) as third:
            assert third.num_lost_found == 0
        first.end_attempt(attempt, RECORD, SCORED)
        assert second.lookup("k") == SCORED


def test_an_end_that_comes_after_all_takes_the_loss_back(path: Path) -> None:
    with Journal(path) as slow:
        begin(slow)
        attempt = slow.begin_attempt("k", number=1)
        with dead(path) as hasty:
            assert hasty.lost_attempts() == 1
            slow.end_attempt(attempt, RECORD, SCORED)
            assert hasty.lost_attempts() == 0
            assert hasty.lookup("k") == SCORED


def test_a_close_gives_up_what_is_under_way(path: Path) -> None:
    with Journal(path) as journal:
        begin(journal)
        journal.begin_attempt("k", number=1)
    with Journal(path) as journal:
        assert (journal.num_lost_found, journal.lost_attempts()) == (0, 1)


def test_threads_may_share_a_journal(journal: Journal) -> None:
    def work(name: int) -> None:
        for i in range(25):
            score(journal, f"{name}/{i}")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(journal.lookup(f"{name}/{i}") == SCORED for name in range(4) for i in range(25))


def test_a_private_journal_serves_and_keeps_no_texts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Journal(None) as journal:
        score(journal)
        assert journal.lookup("k") == SCORED
        with journal._reading() as connection:
            assert connection.execute("SELECT text FROM attempts").fetchall() == [(None,)]
        with pytest.raises(KeyError):
            journal.begin_attempt("nobody", number=1)
        assert journal.lookup("k") == SCORED
    assert list(tmp_path.iterdir()) == []


# secrets ---------------------------------------------------------------------------------------


def test_a_key_is_nowhere_in_the_files(path: Path) -> None:
    secret = "sk-0123456789abcdef"
    with Journal(path, secrets=[secret, ""]) as journal:
        begin(journal)
        echo = AttemptRecord(text=f"a {secret}", detail=secret, model=secret, request_id=secret)
        journal.end_attempt(
            journal.begin_attempt("k", number=1), echo, Scored(0.5, {}, f"by {secret}")
        )
        begin(journal, "l")
        journal.end("l", Failed(f"for {secret}"))
        files = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    files |= {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert len(files) >= 2  # the log too
    assert not any(secret.encode() in content for content in files.values())
    assert rows(path, "SELECT text FROM attempts") == [("a [key]",)]


# keys ------------------------------------------------------------------------------------------

QUESTION = {
    "rubric_version": "r", "schema_version": "s", "judge_id": "j", "sampling": {"a": 1, "b": 2},
    "prompt": "p", "story": "s", "sample": 0,
}  # fmt: skip


def test_a_key_is_the_same_in_every_process() -> None:
    canonical = b'["r","s","j",{"a":1,"b":2},"p","s",0]'
    assert job_key(**QUESTION) == hashlib.sha256(canonical).hexdigest()
    assert job_key(**QUESTION | {"sampling": {"b": 2, "a": 1}}) == job_key(**QUESTION)
    assert len(job_key(**QUESTION | {"story": "half an emoji \ud83d"})) == 64


def test_everything_that_shapes_an_answer_is_in_the_key() -> None:
    changes = [
        {"rubric_version": "r2"}, {"schema_version": "s2"}, {"judge_id": "j2"},
        {"sampling": {"a": 1, "b": 3}}, {"prompt": "p2"}, {"story": "s2"}, {"sample": 1},
        {"prompt": "ps", "story": ""}, {"prompt": "", "story": "ps"},
    ]  # fmt: skip
    keys = {job_key(**QUESTION | change) for change in [{}, *changes]}
    assert len(keys) == len(changes) + 1


def test_sampling_and_schema_are_those_of_the_request() -> None:
    base = JudgeConfig()
    assert sampling_of(base) != sampling_of(JudgeConfig(temperature=0.3))
    assert sampling_of(base) != sampling_of(JudgeConfig(top_p=0.8))
    assert sampling_of(base) != sampling_of(JudgeConfig(response_format="none"))
    assert sampling_of(base) == sampling_of(JudgeConfig(max_concurrency=3, deadline_s=1))
    assert schema_version() != rubric.rubric_version()
    assert judge_id("m", "https://h/v1") == "m@https://h/v1"
    for address in ("https://h/v1/", "HTTPS://H/v1", "https://h:443/v1//"):
        assert judge_id("m", address) == "m@https://h/v1"
    assert judge_id("m", "http://h:443/V1") == "m@http://h:443/V1"
    assert judge_id("m", "http://[::1]:80/v1") == "m@http://[::1]/v1"
    assert judge_id("m", "local", "ab12") == "m@local#ab12"
