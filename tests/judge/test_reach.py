"""The check at the start: one clear error that names the setting, its value and the remedy."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from benchmarks import scripted_endpoint as play
from benchmarks.scripted_endpoint import KEY_VARIABLE, ScriptedServer
from polaris_fast.config import JudgeConfig
from polaris_fast.judge import JudgeJob, JudgePool
from polaris_fast.judge.client import JudgeClient
from polaris_fast.types import Scored, UserError


@pytest.fixture
def closed_url() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def error_of(pool: JudgePool) -> str:
    before = threading.active_count()
    with pytest.raises(UserError) as caught, pool:
        pass
    assert threading.active_count() == before  # nothing left running
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def test_nothing_listens(make_pool, closed_url):
    message = error_of(make_pool(closed_url))
    assert "judge.base_url" in message
    assert closed_url in message
    assert "start it" in message


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000/v1", "ftp://host/v1", "http://", "http://[::1/v1", "http://h:x/v1"]
)
def test_no_address(make_pool, url):
    message = error_of(make_pool(url))
    assert "judge.base_url" in message
    assert repr(url) in message


@pytest.mark.parametrize(
    "url", ["https://me:sk-secret@h/v1", "https://h/v1?key=sk-secret", "https://h/v1#sk-secret"]
)
def test_an_address_with_a_password_is_refused_and_not_repeated(make_pool, url):
    message = error_of(make_pool(url))
    assert "judge.base_url: https://h/v1 is given with" in message
    assert "judge.api_key_env" in message
    assert "sk-secret" not in message


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("key", [None, "sk-test-123456789"])
def test_refused_key(make_pool, monkeypatch, code, key):
    with ScriptedServer(models=play.status(code)) as server:
        pool = make_pool(server.base_url)
        if key:
            monkeypatch.setenv(KEY_VARIABLE, key)
        message = error_of(pool)
    assert KEY_VARIABLE in message
    assert "judge.api_key_env" in message
    assert ("is set" if key else "is not set") in message
    assert (key or "sk-") not in message


def test_failing_server_is_tried_again(make_pool):
    with ScriptedServer(models=play.status(503)) as server:
        assert "503" in error_of(make_pool(server.base_url))


def test_server_that_never_answers(make_pool):
    with ScriptedServer(models=play.slow(30)) as server:
        begin = time.monotonic()
        message = error_of(make_pool(server.base_url, connect_timeout_s=0.2))
    assert time.monotonic() - begin < 3
    assert "0.2 s" in message


def test_forgotten_v1(make_pool):
    with ScriptedServer() as server:
        message = error_of(make_pool(server.base_url.removesuffix("/v1")))
    assert server.base_url in message


def test_endpoint_without_a_list_of_models(make_pool):
    complaint = play.status(400, error={"message": "model is required"})
    with (
        ScriptedServer([complaint], models=play.status(404)) as server,
        make_pool(server.base_url) as pool,
    ):
        assert isinstance(pool.submit(JudgeJob("0", "p", "s")).result(), Scored)


@pytest.mark.parametrize(
    "tree",
    [
        [{"id": "a-judge", "context_length": 0}, "odd"],
        {"models": ["a-judge"]},
        {"data": {"a-judge": {}}},
        {"error": {"message": "no list here", "code": 500}},
        ["odd"],
        [],
        7,
    ],
)
def test_whatever_lists_the_models_is_no_reason_to_stop(make_pool, tree):
    with (
        ScriptedServer(models=play.body(tree)) as server,
        make_pool(server.base_url, model="a-judge") as pool,
    ):
        assert isinstance(pool.submit(JudgeJob("0", "p", "s")).result(), Scored)


async def test_a_bare_list_names_its_models_and_what_they_hold(fast_config):
    entries = [{"id": "a", "context_length": 32768}, {"id": "b", "context_length": 0}]
    with ScriptedServer(models=play.body(entries)) as server:
        async with JudgeClient(fast_config(server.base_url), server.base_url) as client:
            assert await client.list_models(timeout_s=2.0) == {"a": 32768, "b": None}


def test_a_page_instead_of_the_list_leaves_it_to_the_completions(make_pool):
    complaint = play.status(422, error={"message": "model is required"})
    with (
        ScriptedServer([complaint], models=play.not_json()) as server,
        make_pool(server.base_url) as pool,
    ):
        assert isinstance(pool.submit(JudgeJob("0", "p", "s")).result(), Scored)


@pytest.mark.parametrize(
    ("path", "advice"),
    [("", "/v1"), ("/v1/chat/completions", "/v1"), ("/v1/v1", None)],
)
def test_the_advised_address_is_another_one_that_ends_in_v1_once(make_pool, path, advice):
    with ScriptedServer() as server:
        host = server.base_url.removesuffix("/v1")
        message = error_of(make_pool(host + path))
    if advice is None:
        assert f"example {host}{path}/v1" not in message and "/v1/v1/v1" not in message
    else:
        assert message.endswith(f"for example {host}{advice}")


def test_throttled_list_counts_as_reachable(make_pool, caplog):
    with (
        ScriptedServer(models=play.status(429)) as server,
        make_pool(server.base_url),
    ):
        pass
    assert "429" in caplog.text


def test_unlisted_model_is_a_warning(make_pool, caplog):
    models = play.body({"data": [{"id": "a-judge"}, {"id": "another"}]})
    with (
        ScriptedServer(models=models) as server,
        make_pool(server.base_url, model="misspelt"),
    ):
        pass
    assert "misspelt" in caplog.text
    assert "a-judge" in caplog.text


def test_local_judge_is_started_and_stopped():
    before = threading.active_count()
    with JudgePool(JudgeConfig(base_url=None)) as pool:
        outcome = pool.submit(JudgeJob("0", "A dog.", "The dog sat by the door.")).result()
    assert isinstance(outcome, Scored)
    assert outcome.judge == "local-heuristic"
    assert threading.active_count() == before
