"""The local judge over real HTTP: OpenAI's shapes, its own port, a clean end, enough speed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from polaris_fast.config import JudgeConfig
from polaris_fast.judge import JudgeJob, JudgePool, LocalJudge
from polaris_fast.judge.__main__ import main
from polaris_fast.judge.judgement import parse_judgement
from polaris_fast.judge.request import build_messages
from polaris_fast.types import Scored

STORY = "The dog sat by the door. Nobody came. At dusk it lay down on the old coat and slept."


def get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def post(url: str, body: bytes) -> dict[str, Any]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def judge():
    with LocalJudge() as running:
        yield running


def test_health_and_models(judge):
    assert get(judge.base_url.removesuffix("/v1") + "/health")["status"] == "ok"
    (model,) = get(judge.base_url + "/models")["data"]
    assert model["id"] == "local-heuristic"
    assert "no judge of quality" in model["description"]


def test_completion(judge):
    body = json.dumps({"model": "any", "messages": build_messages("A dog.", STORY)}).encode()
    answer = post(judge.base_url + "/chat/completions", body)
    assert answer == post(judge.base_url + "/chat/completions", body)  # deterministic
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert parse_judgement(choice["message"]["content"], STORY).quality > 0.2
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0


def test_any_client_may_send_a_bare_story(judge):
    body = json.dumps({"messages": [{"role": "user", "content": STORY}]}).encode()
    content = post(judge.base_url + "/chat/completions", body)["choices"][0]["message"]["content"]
    assert parse_judgement(content, STORY).quality > 0.2


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"messages": 3}', b'{"messages": []}', b'{"messages":[1]}']
)
def test_bad_requests(judge, body):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(judge.base_url + "/chat/completions", body)
    with caught.value:
        assert caught.value.code == 400
        assert "messages" in json.load(caught.value)["error"]["message"]


def test_start_and_close_leave_nothing_behind():
    before = threading.active_count()
    first, second = LocalJudge(), LocalJudge()
    assert first.base_url != second.base_url
    first.close()
    first.close()
    second.close()
    assert threading.active_count() == before


def test_taken_port():
    before = threading.active_count()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError):
            LocalJudge(port=port)
        assert main(["serve", "--port", str(port)]) == 2
    assert threading.active_count() == before


def test_speed_is_far_above_two_thousand_a_minute():
    with JudgePool(JudgeConfig()) as pool:
        pool.submit(JudgeJob("warm", "A dog.", STORY)).result()
        begin = time.perf_counter()
        futures = [pool.submit(JudgeJob(str(i), "A dog.", f"{STORY} {i}")) for i in range(200)]
        assert all(isinstance(future.result(), Scored) for future in futures)
    assert time.perf_counter() - begin < 6.0  # 2,000 a minute


def test_serve_command_ends_on_ctrl_c():
    command = [sys.executable, "-m", "polaris_fast.judge", "serve", "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            base_url = process.stdout.readline().split()[-1]
            assert get(base_url + "/models")["data"]
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
