"""A server that is stopped, killed or never starts: what is on it ends, and one error says why."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from polaris_fast.rollout import Completion, RolloutRequest, SamplingParams
from polaris_fast.rollout.vllm.errors import ServerError
from polaris_fast.rollout.vllm.fleet import Fleet

from .serving import Serving, save_tiny, serve, vllm_config, wait_until

LONG, NUM_ROWS = SamplingParams(max_completion_length=500), 64


class Stop(Exception):
    pass


def start_and_stop(serving: Serving) -> None:
    """Begin many long rows and give up when the first tokens are drawn."""
    before = serving.num_drawn()

    def stop(alive: int) -> None:
        if serving.num_drawn() > before:
            raise Stop

    requests = [RolloutRequest((1, 2, 3), seed) for seed in range(NUM_ROWS)]
    with serving.slowly(), pytest.raises(Stop):
        serving.engine.generate(requests, LONG, lambda n, row: None, stop)


def test_a_stop_ends_the_rows_on_the_server(serving: Serving) -> None:
    before = serving.num_drawn()
    start_and_stop(serving)
    wait_until(lambda: serving.counted("vllm:num_requests_running") == 0)
    assert 0 < serving.num_drawn() - before < NUM_ROWS * LONG.max_completion_length
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


def write_and_kill(
    serving: Serving, on_finish: Callable[[int, Completion], None], number: int
) -> None:
    """Long rows on all servers; one server is killed when it has drawn its first tokens."""
    before, killed = serving.num_drawn(number), False
    process = serving.engine.fleet.launched[number]._process

    with serving.slowly() as let_go:

        def look(alive: int) -> None:
            nonlocal killed
            if not killed and serving.num_drawn(number) > before:
                os.killpg(process.pid, signal.SIGKILL)
                killed = True
                let_go()

        requests = [RolloutRequest((1, 2, seed // 16), seed) for seed in range(NUM_ROWS)]
        serving.engine.generate(requests, LONG, on_finish, look)


def test_a_killed_server_comes_back_and_all_rows_are_written_once(tmp_path: Path) -> None:
    with serve(tmp_path, num_servers=2, sync_timeout_s=60) as serving:
        serving.disturb(seed=4)  # not the weights that a server starts with
        serving.sync()
        rows: dict[int, Completion] = {}

        def finish(index: int, row: Completion) -> None:
            assert index not in rows, "a row ended twice"
            rows[index] = row

        write_and_kill(serving, finish, number=1)
        assert sorted(rows) == list(range(NUM_ROWS))
        assert serving.engine.num_revivals == 1
        for index in (0, NUM_ROWS - 1):  # of both servers
            expected = serving.logps([1, 2, index // 16], rows[index].completion_ids)
            assert rows[index].rollout_logps == pytest.approx(expected.tolist(), abs=1e-4)
        serving.disturb(seed=5)
        serving.sync()  # the next update reaches both
        for prompt in ([3, 4], [5, 6]):
            row = serving.write([prompt], SamplingParams(max_completion_length=8))[0]
            expected = serving.logps(prompt, row.completion_ids)
            assert row.rollout_logps == pytest.approx(expected.tolist(), abs=1e-4)
        # a server that is lost once too often ends the run, in the words of its log
        serving.engine.num_revivals = serving.engine.settings.max_restarts
        with pytest.raises(ServerError, match=r"ended by signal 9; its log .*vllm-1\.log"):
            write_and_kill(serving, lambda n, row: None, number=1)


def test_rows_in_flight_go_on_with_the_new_weights(serving: Serving) -> None:
    """What came before the update is by the old weights, what follows by the new ones."""
    prompt = (7, 8, 9)
    requests = [RolloutRequest(prompt, seed) for seed in range(8)]
    first, drawn, old = serving.version, serving.num_drawn(), copy.deepcopy(serving.model)
    written: dict[int, Completion] = {}
    with serving.slowly() as let_go, ThreadPoolExecutor(1) as pool:
        writing = pool.submit(serving.engine.generate, requests, LONG, written.__setitem__)
        wait_until(lambda: serving.num_drawn() >= drawn + 2 * len(requests))
        serving.disturb(seed=11)
        serving.sync()
        let_go()
        writing.result()
    mixed = [row for row in written.values() if len(row.versions) == 2]
    assert mixed, "no row was in flight"
    for row in mixed:
        before, after = row.versions
        assert (before.version, after.version) == (first, first + 1)
        assert (before.start, before.end, after.end) == (0, after.start, len(row.completion_ids))
        by_new = serving.logps([*prompt], row.completion_ids)
        by_old = Serving(old, serving.engine, serving.log_dir).logps([*prompt], row.completion_ids)
        told = torch.tensor(row.rollout_logps)
        assert (told - by_old)[: before.end].abs().max() < 1e-4
        assert (told - by_new)[after.start :].abs().max() < 1e-4
        assert (told - by_old)[after.start :].abs().max() > 0.1


def test_an_update_that_broke_off_is_begun_again(serving: Serving) -> None:
    """What the engine does when a connection breaks after vLLM has started an update."""
    fleet, sync = serving.engine.fleet, serving.engine._sync
    (client,) = fleet.clients
    sync.end_update()  # none is open: no harm
    fleet.post("/pause?mode=abort", 30)
    fleet.post("/start_weight_update", 30)
    assert fleet.call(client.is_paused(30))
    with pytest.raises(ServerError, match="start_weight_update"):  # vLLM opens no second one
        fleet.post("/start_weight_update", 30)
    sync.forget_connections()
    sync.end_update()
    serving.disturb(seed=13)
    serving.sync()
    assert not fleet.call(client.is_paused(30))
    row = serving.write([[5, 6, 7]], SamplingParams(max_completion_length=16))[0]
    expected = serving.logps([5, 6, 7], row.completion_ids).tolist()
    assert row.rollout_logps == pytest.approx(expected, abs=1e-4)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    config = vllm_config(extra_args=["--no-such-flag"])
    with Fleet(config, str(tmp_path / "model"), log_dir=tmp_path, backend="gloo") as fleet:
        with pytest.raises(ServerError, match=r"(?s)ended with status 2.*--no-such-flag"):
            fleet.wait_ready(lambda: None)
