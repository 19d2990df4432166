"""Stories from servers, by a stand-in for vLLM's routes."""

from __future__ import annotations

import pytest

from polaris_fast.config import Config
from polaris_fast.evaluate.served import serve_model
from polaris_fast.rollout import RolloutRequest, SamplingParams
from polaris_fast.rollout.vllm.errors import ServerError
from polaris_fast.stopping import StopRequested
from polaris_fast.types import FinishReason
from tests.rollout.vllm_double import answer, doubles

PARAMS = SamplingParams(max_completion_length=3)
REQUESTS = [RolloutRequest((1, 2), seed) for seed in range(10, 16)]


def probe_then(script):
    """The first request of every server is the fleet's question about log-probs."""
    return lambda n, body: answer(body) if n == 0 else script(n, body)


def write(servers, tmp_path, on_finish, *, attempts=4, check_stop=lambda alive: None):
    vllm = {"launch": False, "base_urls": [s.url for s in servers], "max_attempts": attempts}
    config = Config.model_validate(
        {"rollout": {"engine": "vllm", "max_batch_size": 2, "vllm": vllm}}
    )
    with serve_model("unused", config, tmp_path, "gloo", lambda: None) as served:
        served.generate(REQUESTS, PARAMS, on_finish, check_stop)


def test_every_row_is_written_once_with_its_own_seed(tmp_path):
    done = {}
    with doubles(probe_then(lambda n, b: answer(b)), probe_then(lambda n, b: answer(b))) as servers:
        write(servers, tmp_path, done.__setitem__)
        assert [len(server.asked) for server in servers] == [4, 4]
    assert {i: c.completion_ids for i, c in done.items()} == {
        i: [request.seed] * 3 for i, request in enumerate(REQUESTS)
    }
    assert {c.finish_reason for c in done.values()} == {FinishReason.LENGTH}


def test_a_failing_row_is_asked_for_again_and_then_named(tmp_path):
    done = {}
    fails_once = lambda n, body: 500 if n == 1 else answer(body)
    with doubles(fails_once) as servers:
        write(servers, tmp_path, done.__setitem__)
    assert len(done) == len(REQUESTS)
    with doubles(probe_then(lambda n, body: 500)) as servers:
        with pytest.raises(ServerError, match="a row failed 2 times"):
            write(servers, tmp_path, done.__setitem__, attempts=2)


def test_a_stop_drops_what_is_under_way(tmp_path):
    def stop(alive):
        raise StopRequested("SIGINT")

    with doubles(probe_then(lambda n, body: None)) as servers:
        with pytest.raises(StopRequested):
            write(servers, tmp_path, lambda i, c: None, check_stop=stop)
