"""`VLLMEngine` against scripted servers: retries, lost servers, abort, and what it refuses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from polaris_fast.config import Config
from polaris_fast.rollout import Completion, RolloutRequest, SamplingParams
from polaris_fast.rollout.vllm import fleet as fleet_module
from polaris_fast.rollout.vllm.engine import VLLMEngine
from polaris_fast.rollout.vllm.errors import ServerError
from polaris_fast.rollout.vllm.fleet import Fleet

from .vllm_double import Script, VLLMDouble, answer, doubles

PARAMS = SamplingParams(max_completion_length=3)


class NoSync:
    """The stand-ins hold no weights."""

    def send(self, version: str) -> None:
        pass


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(attempt: int) -> None:
        pass

    monkeypatch.setattr("polaris_fast.rollout.vllm.engine.pause_before_retry", at_once)


@contextmanager
def engine_over(
    *scripts: Script, max_batch_size: int = 4
) -> Iterator[tuple[VLLMEngine, list[VLLMDouble]]]:
    with doubles(*scripts) as servers:
        config = Config.model_validate(
            {
                "rollout": {
                    "engine": "vllm",
                    "max_batch_size": max_batch_size,
                    "vllm": {"launch": False, "base_urls": [server.url for server in servers]},
                }
            }
        )
        fleet = Fleet(config, "", log_dir=Path(), backend="gloo")
        engine = VLLMEngine(config, fleet, NoSync())  # type: ignore[arg-type]
        try:
            engine.sync(1, lambda: None)
            for server in servers:
                server.asked.clear()  # of the look at its log-probs
            yield engine, servers
        finally:
            engine.close()


def probe_then(script: Script) -> Script:
    """The first request asks which log-probs the server gives."""
    return lambda n, body: (
        answer(body) if body["sampling_params"]["top_k"] == 1 else script(n, body)
    )


def write(engine: VLLMEngine, prompts: list[tuple[int, ...]]) -> dict[int, Completion]:
    rows: dict[int, Completion] = {}

    def finish(index: int, completion: Completion) -> None:
        assert index not in rows, "a row ended twice"
        rows[index] = completion

    engine.generate([RolloutRequest(p, seed=n) for n, p in enumerate(prompts)], PARAMS, finish)
    return rows


def test_every_row_ends_once_with_its_own_text() -> None:
    with engine_over(probe_then(lambda n, body: answer(body))) as (engine, servers):
        rows = write(engine, [(1, 2)] * 3 + [(3,)] * 3)
        assert {n: row.completion_ids for n, row in rows.items()} == {n: [n] * 3 for n in range(6)}
        assert all(row.rollout_logps == [-1.0] * 3 for row in rows.values())
        assert {tuple(b["token_ids"]) for b in servers[0].asked} == {(1, 2), (3,)}


def test_a_row_that_fails_is_asked_for_again() -> None:
    flaky = probe_then(lambda n, body: 503 if n < 2 else answer(body))
    with engine_over(flaky) as (engine, servers):
        assert len(write(engine, [(1,), (2,), (3,)])) == 3
        assert len(servers[0].asked) == 5


def test_a_row_that_always_fails_ends_the_run() -> None:
    with engine_over(probe_then(lambda n, body: 500)) as (engine, _):
        with pytest.raises(ServerError, match=r"failed 4 times.*HTTP 500 as scripted"):
            write(engine, [(1,)])


def test_a_refusal_is_not_tried_again() -> None:
    with engine_over(probe_then(lambda n, body: 400)) as (engine, servers):
        with pytest.raises(ServerError, match="HTTP 400 as scripted"):
            write(engine, [(1,)])
        assert len(servers[0].asked) == 1


def test_rows_of_a_lost_server_move_to_the_others() -> None:
    def lost(n: int, body: dict[str, Any]) -> Any:
        servers[0].is_up = False
        return 503

    first, second = probe_then(lambda n, body: lost(n, body)), probe_then(lambda n, b: answer(b))
    with engine_over(first, second) as (engine, servers):
        rows = write(engine, [(prompt,) for prompt in range(12)])
        assert sorted(rows) == list(range(12))
        assert len(servers[1].asked) == 12


def test_without_any_server_the_error_says_so() -> None:
    def down(n: int, body: dict[str, Any]) -> Any:
        servers[0].is_up = False
        return 503

    with engine_over(probe_then(lambda n, body: down(n, body))) as (engine, servers):
        with pytest.raises(ServerError, match="no server answers any more"):
            write(engine, [(1,), (2,)])


def test_rows_of_a_prompt_share_a_server_and_servers_share_the_prompts() -> None:
    script = probe_then(lambda n, body: answer(body))
    with engine_over(script, script) as (engine, servers):
        write(engine, [(prompt,) for prompt in range(4) for _ in range(4)])
        prompts = [{tuple(body["token_ids"]) for body in server.asked} for server in servers]
        assert prompts[0].isdisjoint(prompts[1])
        assert len(prompts[0] | prompts[1]) == 4
        assert min(map(len, prompts)) >= 1


def test_a_stop_drops_the_rows_on_the_server() -> None:
    class Stop(Exception):
        pass

    def stop(alive: int) -> None:
        if len(servers[0].asked) == 2:
            raise Stop

    with engine_over(probe_then(lambda n, body: None)) as (engine, servers):
        requests = [RolloutRequest((1,), seed=n) for n in range(2)]
        with pytest.raises(Stop):
            engine.generate(requests, PARAMS, lambda n, row: None, stop)
        deadline = time.monotonic() + 10
        while servers[0].dropped < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert servers[0].dropped == 2


@pytest.mark.parametrize(
    ("faulty", "words"),
    [
        ({"version": "7"}, r"weights of version \['7'\], the trainer's are '1'"),
        ({"tokens": 2}, "cut a row at 2 of 3 tokens.*--max-model-len"),
    ],
)
def test_what_is_not_the_trainers_row_is_refused(faulty: dict[str, Any], words: str) -> None:
    with engine_over(probe_then(lambda n, body: answer(body, **faulty))) as (engine, _):
        with pytest.raises(ServerError, match=words):
            write(engine, [(1,)])


def test_a_row_that_the_server_aborts_is_asked_for_again() -> None:
    script = probe_then(
        lambda n, body: answer(body, finish_reason="abort", tokens=1) if n == 0 else answer(body)
    )
    with engine_over(script) as (engine, _):
        assert write(engine, [(1,)])[0].completion_ids == [0, 0, 0]


def test_another_program_on_the_port_is_named() -> None:
    with engine_over(probe_then(lambda n, body: {"hello": "world"})) as (engine, _):
        with pytest.raises(ServerError, match=r"a form this version does not know.*vLLM 0\.32"):
            write(engine, [(1,)])


def test_servers_must_agree_on_their_logprobs() -> None:
    raw, processed = (lambda n, body: answer(body)), (lambda n, body: answer(body, logp=0.0))
    with pytest.raises(ServerError, match="differ in --logprobs-mode"):
        with engine_over(raw, processed):
            pass


def test_a_server_that_does_not_come_up_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "_POLL_S", 0.01)
    config = Config.model_validate(
        {
            "rollout": {
                "engine": "vllm",
                "vllm": {
                    "launch": False,
                    "base_urls": ["http://127.0.0.1:9"],
                    "start_timeout_s": 0.05,
                },
            }
        }
    )
    with Fleet(config, "", log_dir=Path(), backend="gloo") as fleet:
        with pytest.raises(ServerError, match=r"127\.0\.0\.1:9 did not answer within 0\.05 s"):
            fleet.wait_ready(lambda: None)
