"""A server that is stopped, killed or never starts: what is on it ends, and one error says why."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from polaris_fast.rollout import RolloutRequest, SamplingParams
from polaris_fast.rollout.vllm.errors import ServerError
from polaris_fast.rollout.vllm.fleet import Fleet

from .serving import Serving, save_tiny, serve, vllm_config

LONG, NUM_ROWS = SamplingParams(max_completion_length=500), 64


class Stop(Exception):
    pass


def counted(serving: Serving, name: str) -> float:
    """One of the server's own metrics."""
    client = serving.engine.fleet.clients[0]

    async def ask() -> str:
        async with client._session.get(client.base_url + "/metrics") as response:
            return await response.text()

    lines = serving.engine.fleet.call(ask()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


def num_running(serving: Serving) -> float:
    return counted(serving, "vllm:num_requests_running")


def wait_until(condition: Any, limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def start_and_stop(serving: Serving) -> None:
    """Begin many long rows and give up as soon as the server works on them."""

    def stop(alive: int) -> None:
        if num_running(serving) > 0:
            raise Stop

    requests = [RolloutRequest((1, 2, 3), seed) for seed in range(NUM_ROWS)]
    with pytest.raises(Stop):
        serving.engine.generate(requests, LONG, lambda n, row: None, stop)


def test_a_stop_ends_the_rows_on_the_server(serving: Serving) -> None:
    before = counted(serving, "vllm:generation_tokens_total")
    start_and_stop(serving)
    wait_until(lambda: num_running(serving) == 0)
    drawn = counted(serving, "vllm:generation_tokens_total") - before
    assert 0 < drawn < NUM_ROWS * LONG.max_completion_length
    short = SamplingParams(max_completion_length=4)
    assert len(serving.write([[5, 6]], short)[0].completion_ids) == 4


def test_an_update_right_after_a_stop_is_sound(serving: Serving) -> None:
    """The rows of the abandoned step may still run when the new weights come."""
    start_and_stop(serving)
    serving.disturb(seed=9)
    serving.sync()
    row = serving.write([[5, 6, 7]], SamplingParams(max_completion_length=16))[0]
    expected = serving.logps([5, 6, 7], row.completion_ids).tolist()
    assert row.rollout_logps == pytest.approx(expected, abs=1e-4)


def test_a_killed_server_ends_rollouts_and_sync_with_one_clear_error(tmp_path: Path) -> None:
    with serve(tmp_path, sync_timeout_s=30) as serving:
        process = serving.engine.fleet.launched[0]._process

        killed = False

        def kill(alive: int) -> None:
            nonlocal killed
            if not killed and num_running(serving) > 0:
                os.killpg(process.pid, signal.SIGKILL)
                killed = True

        requests = [RolloutRequest((1, 2, 3), seed) for seed in range(NUM_ROWS)]
        with pytest.raises(ServerError, match=r"ended by signal 9; its log .*vllm-0\.log"):
            serving.engine.generate(requests, LONG, lambda n, row: None, kill)
        with pytest.raises(ServerError, match="ended by signal 9"):
            serving.sync()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    config = vllm_config(extra_args=["--no-such-flag"])
    with Fleet(config, str(tmp_path / "model"), log_dir=tmp_path, backend="gloo") as fleet:
        with pytest.raises(ServerError, match=r"(?s)ended with status 2.*--no-such-flag"):
            fleet.wait_ready(lambda: None)
