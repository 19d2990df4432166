"""A server that is killed while a run's rollouts are written: no row is lost, none judged twice."""

from __future__ import annotations

import json
import os
import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from aiohttp import web

from benchmarks import scripted_endpoint as play
from benchmarks.scripted_endpoint import ScriptedServer
from polaris_fast.rollout.vllm.engine import VLLMEngine
from tests.runs import metrics_of, train

STEPS, PROMPTS, ROWS = 3, 2, 4
VICTIM = 2  # the batch, from 1, in which the server is killed


def judge(story: str) -> list[play.Behaviour]:
    """Points that follow from the story; a second request for it would be answered as well."""

    async def behave(request: web.Request) -> web.StreamResponse:
        return await play.ok(zlib.crc32(story.encode()) % 60)(request)

    return [behave] * 10


@contextmanager
def killed_while_writing() -> Iterator[list[int]]:
    """The server is killed when the first row of batch `VICTIM` has ended.

    Yields:
        how many rows were unfinished then; empty until it happens.
    """
    real, unfinished, batches = VLLMEngine.generate, [], 0  # type: ignore[var-annotated]

    def generate(
        self: VLLMEngine,
        requests: Any,
        params: Any,
        on_finish: Any,
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        nonlocal batches
        batches += len(requests) > 1  # the check before the first step writes a row, too

        def look(missing: int) -> None:
            if batches == VICTIM and not unfinished and 0 < missing < len(requests):
                unfinished.append(missing)
                os.killpg(self.fleet.launched[0]._process.pid, signal.SIGKILL)
            if on_token is not None:
                on_token(missing)

        real(self, requests, params, on_finish, look)

    with mock.patch.object(VLLMEngine, "generate", generate):
        yield unfinished


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_killed_server_costs_no_row_and_no_second_judgement(
    tmp_path: Path, max_staleness: int
) -> None:
    run = tmp_path / "run"
    with ScriptedServer(judge) as endpoint, killed_while_writing() as unfinished:
        status = train(
            run,
            rollout__engine="vllm",
            rollout__max_staleness=max_staleness,
            is_correction="token_truncate",
            dtype="bfloat16",
            temperature=1.0,
            max_steps=STEPS,
            prompts_per_step=PROMPTS,
            num_generations=ROWS,
            judge__base_url=endpoint.base_url,
            judge__api_key_env="POLARIS_TEST_NO_KEY",
            judge__check_at_start="false",
            judge__hedge_budget=0,
            judge__injection_scan="false",  # it asks again, for what a story is without such text
        )
    assert status == 0
    assert unfinished, "no row was being written when the server should have been killed"
    log = (run / "vllm-0.log").read_text()
    assert log.count("Application startup complete") == 2
    assert [line["step"] for line in metrics_of(run)] == [1, 2, 3]
    rows = [
        json.loads(line)
        for step in range(1, STEPS + 1)
        for line in (run / "stories" / f"step-{step:06d}.jsonl").read_text().splitlines()
    ]
    assert len(rows) == len({row["row_id"] for row in rows}) == STEPS * PROMPTS * ROWS
    assert all(row["finish_reason"] for row in rows if row["kind"] == "policy")
    # what the endpoint saw: each story once, and no other
    seen = endpoint.ledger.summary()
    judged = {row["story"] for row in rows if row["outcome"] == "scored"}
    assert seen.calls == seen.stories == len(judged) > 0
