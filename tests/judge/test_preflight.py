"""What every row would stumble over is found before the run, with its setting and the remedy."""

from __future__ import annotations

import pytest

from benchmarks import scripted_endpoint as play
from benchmarks.scripted_endpoint import KEY_VARIABLE, ScriptedServer
from polaris_fast.config import JudgeConfig
from polaris_fast.judge import Backoff, JudgePool
from polaris_fast.judge.preflight import check_context
from polaris_fast.types import UserError

MODELS = play.body({"data": [{"id": "judge-a", "max_model_len": 16384}]})


def complaint(message: str) -> play.Behaviour:
    return play.status(400, error={"message": message, "code": "unsupported_parameter"})


def open_pool(config: JudgeConfig, **changes) -> None:
    with JudgePool(config, backoff=Backoff(0.002, 0.02), **changes):
        pass


def error_of(config: JudgeConfig, **changes) -> str:
    with pytest.raises(UserError) as caught:
        open_pool(config, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("message", "setting", "remedy"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported with this model. Use "
         "'max_completion_tokens' instead.", "judge.max_tokens_parameter", "max_completion_tokens"),
        ("response_format.type json_schema is unavailable", "judge.response_format", "json_object"),
        ("'temperature' does not support 0.2", "judge.temperature", "null, and none is sent"),
        ("`top_p` must be unset", "judge.top_p", "null, and none is sent"),
        ("The model `x` does not exist", "judge.model", "the endpoint knows"),
        ("Something else", "judge:", "base_url to null"),
    ],
)  # fmt: skip
def test_a_parameter_that_the_judge_does_not_take_is_named(fast_config, message, setting, remedy):
    with ScriptedServer([complaint(message)]) as server:
        error = error_of(fast_config(server.base_url, check_at_start=True))
    assert error.startswith(setting)
    assert message[:40] in error
    assert remedy in error


def test_the_test_request_carries_every_parameter_and_little_else(fast_config):
    with ScriptedServer() as server:
        open_pool(fast_config(server.base_url, check_at_start=True))
    body = server.requests[0].body
    assert len(server.requests) == 1
    assert {"model", "temperature", "top_p", "response_format", "max_tokens"} <= body.keys()
    assert body["max_tokens"] < 100
    assert sum(len(message["content"]) for message in body["messages"]) < 200


@pytest.mark.parametrize(
    "answer",
    [
        play.truncated(),
        play.null_content(),
        play.text("no JSON"),
        play.status(429),
        complaint("Could not finish the message because max_tokens was reached"),
    ],
)
def test_whatever_the_answer_is_the_request_was_taken(fast_config, answer):
    with ScriptedServer([answer]) as server:
        open_pool(fast_config(server.base_url, check_at_start=True))


def test_a_failing_server_is_tried_again(fast_config):
    with ScriptedServer([play.status(503), play.status(502)]) as server:
        open_pool(fast_config(server.base_url, check_at_start=True))
        assert len(server.requests) == 3
    with ScriptedServer(default=play.status(503)) as server:
        assert "503" in error_of(fast_config(server.base_url, check_at_start=True))


@pytest.mark.parametrize(
    ("fault", "words"),
    [(play.status(402), "no credit"), (play.status(401), KEY_VARIABLE)],
)
def test_no_credit_and_a_refused_key_end_the_run_before_it_begins(fast_config, fault, words):
    with ScriptedServer([fault]) as server:
        assert words in error_of(fast_config(server.base_url, check_at_start=True))


def test_the_fallback_is_checked_under_its_own_name(fast_config):
    with (
        ScriptedServer() as main,
        ScriptedServer([complaint("json_schema is unknown here")]) as other,
    ):
        fallback = {"base_url": other.base_url, "model": "b"}
        error = error_of(fast_config(main.base_url, check_at_start=True, fallback=fallback))
    assert error.startswith("judge.fallback.response_format")
    wrong = fast_config("http://127.0.0.1:1/v1", fallback={"base_url": "nowhere", "model": "b"})
    assert error_of(wrong).startswith("judge.fallback.base_url: 'nowhere'")


def test_a_story_that_the_model_cannot_hold_is_a_configuration_error(fast_config):
    with ScriptedServer(models=MODELS) as server:
        config = fast_config(server.base_url, model="judge-a", max_output_tokens=4096)
        open_pool(config, longest_story_tokens=2000)
        error = error_of(config, longest_story_tokens=8000)
        assert server.requests == []
    for part in ("judge.model: 'judge-a' holds 16384", "story 9200", "answer 4096", "max_output"):
        assert part in error


def test_a_stated_context_wins_over_the_endpoints(fast_config):
    with ScriptedServer(models=MODELS) as server:
        config = fast_config(server.base_url, model="judge-a", context_length=200_000)
        open_pool(config, longest_story_tokens=60_000)


def test_an_unknown_context_is_not_guessed():
    check_context(JudgeConfig(), None, 10**9)


def test_the_local_judge_is_not_asked(monkeypatch):
    with JudgePool(JudgeConfig(), longest_story_tokens=10**9) as pool:
        assert pool.take_metrics()["judge/submitted"] == 0
