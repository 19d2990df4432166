"""What an engine asks of its servers around an update: pause, sleep, wake, and once more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from polaris_fast.config import Config
from polaris_fast.rollout.vllm.engine import VLLMEngine
from polaris_fast.rollout.vllm.errors import ServerError
from polaris_fast.rollout.vllm.fleet import Fleet
from polaris_fast.rollout.vllm.sync import WeightSync

from .engine_rig import (
    engine_config,
    engine_over,
    goes_down,
    probe_then,
    sent_by,
    write,
)
from .vllm_double import VLLMDouble, answer, doubles


class OverHTTP(WeightSync):
    """The product's calls to the servers; what travels between them is noted as `send`."""

    def __init__(
        self, fleet: Fleet, config: Config, servers: list[VLLMDouble], device: str = "cpu"
    ) -> None:
        super().__init__(fleet, dict, torch.device(device), config)
        self.transfer = Noted(servers)


class Noted:
    def __init__(self, servers: list[VLLMDouble]) -> None:
        self.servers = servers

    def connect(self) -> None:
        self._note("connect")

    def disconnect(self) -> None:
        self._note("disconnect")

    def send(self) -> None:
        self._note("send")

    def _note(self, what: str) -> None:
        for server in self.servers:
            server.posted.append(what)


def test_a_server_on_the_trainers_gpu_sleeps_whenever_the_trainer_trains() -> None:
    present = lambda n, body: answer(body, version=engine.version or "1")
    with engine_over(probe_then(present)) as (engine, servers):
        engine._sync = OverHTTP(engine.fleet, engine_config(servers), servers)
        engine._sleeps = True  # as `placement: colocated` has it, which needs a GPU
        engine.sync(2, lambda: None)
        awake = ["/pause?mode=abort", "send", "/resume"]
        assert servers[0].posted == ["connect", *awake]
        write(engine, [(1,)])
        assert servers[0].posted[4:] == ["/sleep?level=2"]
        engine.sync(3, lambda: None)  # weights first: the cache's memory is free for the transfer
        woken = ["/wake_up?tags=weights", "send", "/wake_up?tags=kv_cache", "/resume"]
        assert servers[0].posted[5:] == woken
        write(engine, [(1,)])
        assert servers[0].posted[9:] == ["/sleep?level=2"]
        write(engine, [(1,)])  # once more in one step: the same weights again
        assert servers[0].posted[10:] == [*woken, "/sleep?level=2"]


def test_a_server_that_does_not_sleep_is_brought_back_for_its_next_use() -> None:
    """Its rows are there already, so nothing has failed."""
    with engine_over(probe_then(lambda n, body: answer(body))) as (engine, servers):
        engine._sleeps = True
        servers[0].drops["/sleep"] = 3
        assert sorted(write(engine, [(1,), (2,)])) == [0, 1]
        assert not engine.fleet.asleep
        engine.sync(1, lambda: None)  # the same weights: it has none any more
        assert sent_by(engine) == [("1", False), ("1", False)] and engine.num_revivals == 1
        assert sorted(write(engine, [(1,)])) == [0]


def test_a_control_request_whose_connection_breaks_is_made_again() -> None:
    with engine_over(probe_then(lambda n, body: answer(body))) as (engine, servers):
        engine._sync = OverHTTP(engine.fleet, engine_config(servers), servers)
        servers[0].drops |= {"/pause": 2, "/resume": 1}
        engine.sync(2, lambda: None)
        pauses = ["/pause?mode=abort"] * 3
        assert servers[0].posted == ["connect", *pauses, "send", "/resume", "/resume"]


def test_no_request_takes_a_connection_that_a_server_may_be_closing() -> None:
    with engine_over(probe_then(lambda n, body: answer(body))) as (engine, servers):
        engine.fleet.post("/start_weight_update", 5)
        engine.fleet.post("/finish_weight_update", 5)
        assert len(set(servers[0].peers)) == 2


class Started(Noted):
    """Sends nothing, but asks the servers to start."""

    def __init__(self, servers: list[VLLMDouble], fleet: Fleet) -> None:
        super().__init__(servers)
        self.fleet = fleet

    def send(self) -> None:
        self.fleet.post("/start_weight_update", 5)


def test_an_update_whose_connection_breaks_is_begun_once_again() -> None:
    with engine_over(probe_then(lambda n, body: answer(body))) as (engine, servers):
        sync = engine._sync = OverHTTP(engine.fleet, engine_config(servers), servers)
        sync.transfer = Started(servers, engine.fleet)
        servers[0].drops["/start_weight_update"] = 1
        engine.sync(2, lambda: None)
        tried = ["connect", "/pause?mode=abort", "/start_weight_update"]
        # vLLM refuses to start an update while one is open
        again = ["disconnect", "/finish_weight_update", *tried]
        assert servers[0].posted == [*tried, *again, "/resume"]
        servers[0].drops["/start_weight_update"] = 2
        with pytest.raises(ServerError, match="/start_weight_update: ServerDisconnected"):
            engine.sync(3, lambda: None)
        assert engine.num_revivals == 0


def test_a_sleeping_server_is_woken_wholly_when_its_update_is_begun_again() -> None:
    with engine_over(probe_then(lambda n, body: answer(body))) as (engine, servers):
        sync = engine._sync = OverHTTP(engine.fleet, engine_config(servers), servers)
        sync.transfer = Started(servers, engine.fleet)
        engine.fleet.sleep()
        servers[0].drops["/start_weight_update"] = 1
        engine.sync(2, lambda: None)
        woken = ["/wake_up?tags=weights", "connect", "/start_weight_update"]
        assert servers[0].posted[-5:] == [*woken, "/wake_up?tags=kv_cache", "/resume"]


def test_servers_of_their_own_gpus_never_sleep() -> None:
    with engine_over(probe_then(lambda n, body: answer(body))) as (engine, servers):
        engine._sync = OverHTTP(engine.fleet, engine_config(servers), servers)
        write(engine, [(1,)])
        engine.sync(2, lambda: None)
        assert servers[0].posted == ["connect", "/pause?mode=abort", "send", "/resume"]


@pytest.fixture
def on_its_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[VLLMEngine, VLLMDouble]]:
    """An engine over a server that shares the trainer's GPU; what is emptied is noted there."""
    with doubles(goes_down(lambda: servers[0], 1, back_after=None)) as servers:
        config = engine_config(servers, transfer="ipc", start_timeout_s=0.3)
        fleet = Fleet(config, "", log_dir=Path(), backend="ipc")
        note = lambda: servers[0].posted.append("empty_cache")
        monkeypatch.setattr(torch.cuda, "empty_cache", note)
        engine = VLLMEngine(config, fleet, OverHTTP(fleet, config, servers, "cuda"))
        try:
            yield engine, servers[0]
        finally:
            engine.close()


def test_a_server_that_sleeps_before_the_first_update_is_woken_by_it(
    on_its_gpu: tuple[VLLMEngine, VLLMDouble],
) -> None:
    engine, server = on_its_gpu
    engine.fleet.wait_ready(lambda: None)
    engine.fleet.sleep()
    assert len(server.asked) == 1  # which log-probs it gives: a sleeping server would not answer
    engine.sync(1, lambda: None)
    assert len(server.asked) == 1
    assert server.posted == [
        "/sleep?level=2",
        "empty_cache",  # before the server takes memory
        *("/wake_up?tags=weights", "connect", "send"),
        "empty_cache",  # the transfer's, before keys and values get theirs
        *("/wake_up?tags=kv_cache", "/resume"),
    ]


def test_a_lost_server_of_the_trainers_gpu_finds_its_memory_free_or_says_what_to_do(
    on_its_gpu: tuple[VLLMEngine, VLLMDouble],
) -> None:
    engine, server = on_its_gpu
    engine.sync(1, lambda: None)
    server.posted.clear()
    with pytest.raises(
        ServerError, match=r"did not answer within 0\.3 s[\s\S]*shares its GPU.*resum"
    ):
        write(engine, [(1,)])
    assert server.posted == ["empty_cache"]


def test_the_memory_of_servers_elsewhere_is_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: pytest.fail("emptied"))
    with engine_over(probe_then(lambda n, body: answer(body))) as (engine, servers):
        engine._sync = OverHTTP(engine.fleet, engine_config(servers), servers)
        engine.sync(2, lambda: None)


def test_after_an_update_that_failed_its_group_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_over(probe_then(lambda n, body: answer(body))) as (engine, servers):
        sync = OverHTTP(engine.fleet, engine_config(servers), servers)
        engine._sync = sync
        monkeypatch.setattr(sync.transfer, "send", mock.Mock(side_effect=ValueError("refused")))
        with pytest.raises(ServerError, match=r"could not be sent \(refused\)"):
            engine.sync(2, lambda: None)
        assert servers[0].posted == ["connect", "/pause?mode=abort", "disconnect"]
