"""`VLLMEngine` against scripted servers: retries, lost servers, abort, and what it refuses."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from polaris_fast.config import Config
from polaris_fast.rollout import Completion, RolloutRequest
from polaris_fast.rollout.vllm import engine as engine_module
from polaris_fast.rollout.vllm import fleet as fleet_module
from polaris_fast.rollout.vllm.client import VLLMClient
from polaris_fast.rollout.vllm.errors import ServerError
from polaris_fast.rollout.vllm.fleet import Fleet
from polaris_fast.rollout.vllm.routing import Router
from polaris_fast.types import VersionSpan

from .engine_rig import (
    PARAMS,
    engine_config,
    engine_over,
    goes_down,
    probe_then,
    sent_by,
    write,
)
from .vllm_double import answer, doubles


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
    """While nobody brings it back: rows are written on another thread."""
    first = goes_down(lambda: servers[0], 0, back_after=None)
    with engine_over(first, probe_then(lambda n, b: answer(b))) as (engine, servers):
        with ThreadPoolExecutor(1) as pool:
            rows = pool.submit(write, engine, [(prompt,) for prompt in range(12)]).result()
        assert sorted(rows) == list(range(12))
        assert len(servers[1].asked) == 12


def test_a_server_that_comes_back_gets_the_weights_and_writes_the_missing_rows() -> None:
    with engine_over(goes_down(lambda: servers[0], 3, back_after=4)) as (engine, servers):
        rows = write(engine, [(prompt,) for prompt in range(8)])
        assert {n: row.completion_ids for n, row in rows.items()} == {n: [n] * 3 for n in range(8)}
        assert sent_by(engine) == [("1", False), ("1", True)]
        assert engine.num_revivals == 1


def test_rows_in_flight_elsewhere_go_on_while_a_server_comes_back() -> None:
    down = goes_down(lambda: servers[0], 0, back_after=4)
    with engine_over(down, probe_then(lambda n, body: answer(body))) as (engine, servers):
        assert sorted(write(engine, [(prompt,) for prompt in range(12)])) == list(range(12))
        assert len(servers[1].asked) >= 4
        assert all(kept for _, kept in sent_by(engine)[1:])


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_restarts": 0}, r"lost more than max_restarts = 0 times; see the logs of http"),
        ({"start_timeout_s": 0.3}, r"did not answer within 0\.3 s"),
    ],
)
def test_a_server_that_stays_away_ends_the_run(limits: dict[str, Any], words: str) -> None:
    down = goes_down(lambda: servers[0], 0, back_after=None)
    with engine_over(down, **limits) as (engine, servers):
        with pytest.raises(ServerError, match=words):
            write(engine, [(1,), (2,)])


def test_only_the_training_thread_brings_servers_back() -> None:
    """Another thread may not read the weights: it waits until `mend` is called."""
    with engine_over(goes_down(lambda: servers[0], 0, back_after=2)) as (engine, servers):
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write, engine, [(1,), (2,)])
            deadline = time.monotonic() + 10
            while not engine._lost and time.monotonic() < deadline:
                time.sleep(0.01)
            assert sent_by(engine) == [("1", False)] and not writing.done()
            engine.mend(2, lambda: None)
            assert sent_by(engine) == [("1", False), ("2", True)]
            with pytest.raises(ServerError, match=r"version \['1'\], the trainer's are '2'"):
                writing.result()  # the script goes on with the weights of before


def test_tokens_know_which_weights_drew_them() -> None:
    """Weights that come while a row is written draw the rest of it."""
    spans = [("1", 0, 2), ("2", 2, 3)]
    held = probe_then(lambda n, body: answer(body, spans=spans) if updated.is_set() else None)
    updated = threading.Event()
    with engine_over(held) as (engine, servers), ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, engine, [(1,)])
        while not servers[0].asked:
            time.sleep(0.01)
        engine.sync(2, lambda: None)
        updated.set()
        assert writing.result()[0].versions == (VersionSpan(1, 0, 2), VersionSpan(2, 2, 3))
        assert sent_by(engine)[-1] == ("2", True)


def test_weights_of_before_the_request_are_refused() -> None:
    with engine_over(probe_then(lambda n, body: answer(body, version="1"))) as (engine, _):
        engine.sync(2, lambda: None)
        with pytest.raises(ServerError, match=r"version \['1'\], the trainer's are '2'"):
            write(engine, [(1,)])


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


def test_a_server_that_returns_while_a_batch_begins_writes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The training thread brings it back just when the writing thread looks who is present."""

    class Returning(Router[VLLMClient]):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            returned, engine._lost = engine._lost, set()
            for router in engine._routers:
                engine.fleet.call(router.restore(returned))

    monkeypatch.setattr(engine_module, "Router", Returning)
    with engine_over(probe_then(lambda n, body: answer(body))) as (engine, _):
        engine._lost = set(engine.fleet.clients)
        deadline = time.monotonic() + 10

        def stop(missing: int) -> None:
            assert time.monotonic() < deadline, "its server is back, and nobody told it"

        rows: dict[int, Completion] = {}
        engine.generate([RolloutRequest((1,), seed=0)], PARAMS, rows.__setitem__, stop)
        assert sorted(rows) == [0]


def test_another_program_on_the_port_is_named() -> None:
    with engine_over(probe_then(lambda n, body: {"hello": "world"})) as (engine, _):
        with pytest.raises(ServerError, match=r"a form this version does not know.*vLLM 0\.32"):
            write(engine, [(1,)])


def test_servers_must_agree_on_their_logprobs() -> None:
    raw, processed = (lambda n, body: answer(body)), (lambda n, body: answer(body, logp=0.0))
    with pytest.raises(ServerError, match="differ in --logprobs-mode"):
        with engine_over(raw, processed):
            pass


def test_a_server_that_another_run_left_paused_is_refused_before_it_is_asked_for_a_row() -> None:
    with doubles(lambda n, body: pytest.fail("asked")) as servers:
        servers[0].is_paused = True
        with Fleet(engine_config(servers), "", log_dir=Path(), backend="gloo") as fleet:
            with pytest.raises(ServerError, match=rf"{servers[0].url} is paused: .*restart it"):
                fleet.wait_ready(lambda: None)


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
