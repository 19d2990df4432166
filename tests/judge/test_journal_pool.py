"""The pool and its journal: paid once over samples, epochs, runs and twins; keys stay out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import scripted_endpoint as play
from benchmarks.scripted_endpoint import KEY_VARIABLE, ScriptedServer
from polaris_fast.config import JudgeConfig
from polaris_fast.judge import JudgePool
from polaris_fast.judge.jobs import JudgeJob
from polaris_fast.judge.journal import JournalError, journal_path, keys
from polaris_fast.types import Failed, RowKind, Scored

MakePool = Callable[..., JudgePool]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal.sqlite")


def human(uid: str = "0/0/3", story: str = "A human story.") -> JudgeJob:
    return JudgeJob(uid, "A prompt.", story, samples=3, kind=RowKind.HUMAN)


def policy(uid: str = "0/0/0", story: str = "A story.") -> JudgeJob:
    return JudgeJob(uid, "A prompt.", story)


def test_a_human_story_is_judged_k_times_once_over_epochs_and_runs(
    make_pool: MakePool, path: str
) -> None:
    with ScriptedServer([play.ok(30), play.ok(40), play.ok(50)]) as server:
        with make_pool(server.base_url, journal=path) as pool:
            first = pool.submit(human()).result()
            again = pool.submit(human("7/1/3")).result()
        with make_pool(server.base_url, journal=path) as pool:
            in_another_run = pool.submit(human("2/0/3")).result()
            assert pool.take_metrics()["judge/journal_hits"] == 3
            assert isinstance(pool.submit(human(story="Another.")).result(), Scored)
    assert first == again == in_another_run
    assert isinstance(first, Scored) and first.quality == pytest.approx(0.4)
    assert len(server.requests) == 3 + 3


def test_only_the_missing_sample_is_asked_again(make_pool: MakePool, path: str) -> None:
    script = [play.ok(30), play.status(404), play.ok(50), play.ok(70)]
    with ScriptedServer(script) as server:
        settings = {"journal": path, "max_concurrency": 1}
        with make_pool(server.base_url, **settings) as pool:
            assert pool.submit(human()).result().flags == ("samples:2/3",)
        with make_pool(server.base_url, **settings) as pool:
            whole = pool.submit(human()).result()
    assert whole.quality == pytest.approx(0.5) and whole.flags == ()
    assert len(server.requests) == 4


def test_twins_submitted_at_once_are_one_paid_call(make_pool: MakePool, path: str) -> None:
    slow = [play.slow(0.05, play.ok(points)) for points in range(50)]
    with ScriptedServer(slow) as server, make_pool(server.base_url, journal=path) as pool:
        futures = [pool.submit(policy(f"0/0/{row}")) for row in range(20)]
        assert len({future.result().quality for future in futures}) == 1
    assert len(server.requests) == 1


def test_another_judge_or_other_settings_are_asked_anew(make_pool: MakePool, path: str) -> None:
    with ScriptedServer() as server:
        for changes in ({}, {"model": "another"}, {"temperature": 0.7}, {"max_attempts": 2}):
            with make_pool(server.base_url, journal=path, **changes) as pool:
                assert isinstance(pool.submit(policy()).result(), Scored)
    assert len(server.requests) == 3  # how often a judge is tried does not change its answer


def test_a_failure_is_asked_again(make_pool: MakePool, path: str) -> None:
    with ScriptedServer([play.status(404), play.ok(40)]) as server:
        with make_pool(server.base_url, journal=path) as pool:
            assert isinstance(pool.submit(policy()).result(), Failed)
        with make_pool(server.base_url, journal=path) as pool:
            assert pool.submit(policy()).result().quality == pytest.approx(0.4)


def test_the_local_judge_is_journaled_too(path: str) -> None:
    with JudgePool(JudgeConfig(journal=path)) as pool:
        first = pool.submit(policy()).result()
    with JudgePool(JudgeConfig(journal=path)) as pool:
        assert pool.submit(policy()).result() == first
        metrics = pool.take_metrics()
    assert metrics["judge/journal_hits"] == 1 and metrics.get("judge/prompt_tokens", 0) == 0


def test_a_journal_that_cannot_be_used_is_told_before_a_call(
    make_pool: MakePool, tmp_path: Path
) -> None:
    with (
        ScriptedServer() as server,
        pytest.raises(JournalError, match=r"judge\.journal"),
        make_pool(server.base_url, journal=str(tmp_path)),
    ):
        pass
    assert server.requests == []


def test_a_key_that_the_endpoint_repeats_is_not_kept(
    make_pool: MakePool, fast_config: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = "sk-secret-0123456789abcdef"
    monkeypatch.setenv(KEY_VARIABLE, key)
    echoes = [
        play.status(500, error={"message": key}, headers={"x-request-id": key}),
        play.refusal(f"Not with {key}"),
        play.text(f"The key is {key}."),
        play.body(play.completion(None) | {"model": key}),
    ]
    folder = tmp_path / "journal"
    with (
        ScriptedServer(lambda story: [*echoes, play.ok()]) as server,
        make_pool(
            server.base_url, journal=str(folder / "j.sqlite"), max_attempts=9, retry_budget=9
        ) as pool,
    ):
        for row in range(4):
            pool.submit(policy(f"{row}", f"Story {row}.")).result()
        content = b"".join(file.read_bytes() for file in folder.iterdir())
    content += b"".join(file.read_bytes() for file in folder.iterdir())
    assert any(seen.headers["Authorization"].endswith(key) for seen in server.requests)
    assert b"[key]" in content and key.encode() not in content


def test_off_keeps_no_file(make_pool: MakePool, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert journal_path("off", run_dir) is None
    with ScriptedServer() as server, make_pool(server.base_url, journal="off") as pool:
        assert pool.submit(policy()).result() == pool.submit(policy("1/0/0")).result()
    assert len(server.requests) == 1  # known as long as the pool lives
    assert list(tmp_path.iterdir()) == []


def test_another_spelling_of_the_address_pays_nothing_twice(make_pool, tmp_path):
    journal = str(tmp_path / "journal.sqlite")
    with ScriptedServer() as server:
        for base_url in (server.base_url, server.base_url + "/", server.base_url):
            with make_pool(base_url, journal=journal) as pool:
                assert isinstance(pool.submit(JudgeJob("0", "p", "A.")).result(), Scored)
        assert len(server.requests) == 1


def test_a_journal_of_when_spellings_counted_is_still_served(make_pool, tmp_path, monkeypatch):
    journal = str(tmp_path / "journal.sqlite")
    with ScriptedServer() as server:
        spelt = server.base_url + "/"
        with monkeypatch.context() as patch:
            patch.setattr(keys, "_plain", str)
            with make_pool(spelt, journal=journal) as pool:
                first = pool.submit(JudgeJob("0", "p", "A.")).result()
        with make_pool(spelt, journal=journal) as pool:
            assert pool.submit(JudgeJob("0", "p", "A.")).result() == first
        assert len(server.requests) == 1
