"""Servers on a GPU that a rank trains on: ready, and asleep, before the rank loads anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from polaris_fast.config import Config
from polaris_fast.ranks import World, follower, parts
from polaris_fast.ranks.parts import Orders, build_parts
from polaris_fast.rollout.vllm.errors import ServerError
from polaris_fast.stopping import StopRequested
from polaris_fast.types import UserError

COLOCATED = {"placement": "colocated", "gpu_memory_utilization": 0.3}


class Servers:
    """A fleet that notes what is asked of it."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def wait_ready(self, check_stop: Callable[[], None]) -> None:
        check_stop()
        self.log.append("ready")

    def sleep(self) -> None:
        self.log.append("sleep")

    def close(self) -> None:
        self.log.append("close")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order, where a rank has a GPU."""
    noted: list[str] = []
    monkeypatch.setattr(parts, "_start_servers", lambda *_: noted.append("start") or Servers(noted))
    monkeypatch.setattr(parts, "_load_parts", lambda *_: noted.append("load") or SimpleNamespace())
    return noted


def orders(**vllm: Any) -> Orders:
    config = Config.model_validate({"rollout": {"engine": "vllm", "vllm": vllm}})
    return Orders(config, "model", None, None, 1)


@pytest.mark.parametrize(
    ("vllm", "order"),
    [
        (COLOCATED, ["start", "ready", "sleep", "load"]),
        ({"transfer": "ipc"}, ["start", "ready", "load"]),  # awake beside the trainer, always
        ({"gpus": [1]}, ["start", "load"]),  # with a GPU of its own it may take its time
    ],
)
def test_a_shared_gpu_is_the_servers_alone_until_it_is_ready(
    log: list[str], vllm: dict[str, Any], order: list[str]
) -> None:
    build_parts(orders(**vllm), World())
    assert log == order


def test_a_stop_while_servers_start_ends_them(log: list[str]) -> None:
    def stop() -> None:
        raise StopRequested("SIGINT")

    with pytest.raises(StopRequested):
        build_parts(orders(**COLOCATED), World(), stop)
    assert log == ["start", "close"]


def test_a_model_that_does_not_load_ends_them(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise UserError("no such model")

    monkeypatch.setattr(parts, "_load_parts", fail)
    with pytest.raises(UserError, match="no such model"):
        build_parts(orders(**COLOCATED), World())
    assert log == ["start", "ready", "sleep", "close"]


def test_when_the_server_of_one_rank_does_not_start_no_rank_goes_on(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    assert (tmp_path / "0").read_text() == "UserError: rank 1: out of memory, then close"
    assert (tmp_path / "1").read_text() == "ServerError: out of memory, then close"


@pytest.mark.parametrize("command", [("sync", (3,)), ("generate", (1, [], None))])
def test_a_follower_whose_server_is_lost_says_so_and_saves_its_part(
    command: tuple[str, tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> None:
        raise ServerError("the server is gone")

    said = iter([("build", (None, None)), command, ("save", ("folder",)), ("end", ())])
    channel = SimpleNamespace(receive=lambda: next(said), gather=lambda _: [])
    log: list[str] = []
    outbox = SimpleNamespace(report=log.append, close=lambda: None)
    monkeypatch.setattr(follower, "Channel", lambda _: channel)
    monkeypatch.setattr(follower, "Outbox", lambda _: outbox)
    monkeypatch.setattr(follower.signal, "signal", lambda *_: None)
    rollouts = SimpleNamespace(sync=lost, generate=lost, close=lambda: log.append("close"))
    slots = SimpleNamespace(save=lambda folder: log.append(f"save {folder}"))
    built = SimpleNamespace(slots=slots, rollouts=rollouts)
    assert follower.follow(World(1, 2, 1), lambda *_: built) == 0  # type: ignore[arg-type, return-value]
    assert log == ["rank 1: the server is gone", "save folder", "close"]


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/met", rank=rank, world_size=2)
    log: list[str] = []
    servers = Servers(log)
    if rank == 1:

        def fail(check_stop: Callable[[], None]) -> None:
            raise ServerError("out of memory")

        servers.wait_ready = fail  # type: ignore[method-assign]
    parts._start_servers = lambda *_: servers  # type: ignore[assignment, return-value]
    parts._load_parts = lambda *_: log.append("load")  # type: ignore[assignment, return-value]
    try:
        build_parts(orders(**COLOCATED), World(rank, 2, rank))
    except UserError as error:
        Path(folder, str(rank)).write_text(f"{type(error).__name__}: {error}, then {log[-1]}")
    dist.destroy_process_group()
