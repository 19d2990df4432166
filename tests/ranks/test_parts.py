"""The small parts: who writes what, who we are, and words that come too late."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from polaris_fast.config import Config
from polaris_fast.device import choose_device
from polaris_fast.model.load import prepare_model
from polaris_fast.model.parity import PackingLeak
from polaris_fast.model.tiny import tiny_model
from polaris_fast.packing import RowCost, plan_rounds
from polaris_fast.ranks import World, join_world, parts
from polaris_fast.ranks.channel import Channel
from polaris_fast.ranks.parts import Orders, build_parts
from polaris_fast.ranks.rollouts import share_requests
from polaris_fast.ranks.slots import SharedSlots
from polaris_fast.ranks.streams import Abandoned, Inbox, Outbox
from polaris_fast.rollout import Completion, RolloutRequest
from polaris_fast.slots import SlotTrainer
from polaris_fast.types import FinishReason, Row, RowKind, StoryRecord, UserError
from tests.test_step import make_engine, step_config

STORY = Completion([1], [0.0], [0.0], FinishReason.STOP)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8, 50])
def test_every_request_has_one_writer_and_writers_have_equal_shares(num_ranks: int) -> None:
    requests = [RolloutRequest((n % 7,), n) for n in range(40)]
    shares = share_requests(requests, num_ranks)
    assert sorted(index for share in shares for index in share) == list(range(40))
    sizes = [len(share) for share in shares]
    assert len(shares) == num_ranks and max(sizes) - min(sizes) <= 1


def test_rows_of_a_prompt_stay_together_where_the_counts_allow() -> None:
    requests = [RolloutRequest((n % 4,), n) for n in range(24)]
    for share in share_requests(requests, 4):
        assert len({requests[index].prompt_ids for index in share}) == 1


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_rounds_give_every_rank_a_slot_and_hold_each_row_once(num_ranks: int) -> None:
    lengths = [700, 90, 400, 650, 120, 300, 310, 505, 80, 220, 610, 400]
    rounds = plan_rounds(lengths, 1000, cost=RowCost(1.0, 0.001), num_ranks=num_ranks)
    rows = [row for slots in rounds for slot in slots for row in slot]
    assert sorted(rows) == list(range(len(lengths)))
    assert all(len(slots) == num_ranks for slots in rounds[:-1])
    for slots in rounds:
        assert all(sum(lengths[row] for row in slot) <= 1000 for slot in slots)


def test_fewer_rows_than_ranks_leave_ranks_idle() -> None:
    assert plan_rounds([10, 20], 100, num_ranks=4) == [[[1], [0]]]


def test_a_launcher_that_sets_half_of_its_variables_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(UserError, match=r"RANK.*'one'.*torchrun"), join_world():
        pass


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine with one GPU, as torch tells it; devices that were made current."""
    current: list[int] = []

    def set_device(index: int) -> None:
        if index >= 1:
            raise RuntimeError("CUDA error: invalid device ordinal")
        current.append(index)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    return current


def _device_on_rank(
    rank: int, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[str, torch.device]:
    """Backend of the process group and device of a rank of two."""
    backends: list[str] = []
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.distributed, "init_process_group", backends.append)
    with join_world() as world:
        return backends[0], choose_device(Config(**settings), world.local_rank)


def test_a_rank_without_a_gpu_of_its_own_says_what_to_do(
    one_gpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _device_on_rank(0, monkeypatch)
    assert first == ("cpu:gloo,cuda:nccl", torch.device("cuda", 0)) and one_gpu == [0]
    with pytest.raises(UserError, match=r"rank 1 .* no GPU of its own, torch finds 1; .*device: c"):
        _device_on_rank(1, monkeypatch)


def test_ranks_on_cpu_leave_the_machines_gpus_alone(
    one_gpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _device_on_rank(1, monkeypatch, device="cpu")[1] == torch.device("cpu")
    assert one_gpu == []


def test_when_one_rank_cannot_build_its_parts_no_rank_waits_for_it(tmp_path: Path) -> None:
    mp.spawn(_build_on_rank, (str(tmp_path),), nprocs=2)
    said = [(tmp_path / rank).read_text().splitlines() for rank in ("0", "1")]
    assert said[0] == [f"UserError: rank 1: {part}" for part in FAULTS]
    assert said[1] == [f"{kind.__name__}: {part}" for part, kind in FAULTS.items()]


# what fails on the second rank alone: before the kernels are shared, after, and at the engine
FAULTS = {"choose_device": UserError, "check_packing": PackingLeak, "_engine_kind": UserError}


def _build_on_rank(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/met", rank=rank, world_size=2,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    orders = Orders(step_config(), "", None, None, 1)
    said = []
    for name, kind in FAULTS.items():

        def fail(*_: Any, words: str = name, kind: type[Exception] = kind) -> Any:
            raise kind(words)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "load_causal_lm", lambda *_, **__: prepare_model(tiny_model()))
            patch.setattr(parts, "find_base", lambda *_: None)
            if rank == 1:
                patch.setattr(parts, name, fail)
            with pytest.raises((UserError, PackingLeak)) as caught:
                build_parts(orders, World(rank, 2, rank))
            said.append(f"{caught.type.__name__}: {caught.value}")
    Path(folder, str(rank)).write_text("\n".join(said))
    dist.destroy_process_group()


def test_rows_that_cannot_be_trained_reach_no_rank() -> None:
    class Line(Channel):
        def __init__(self) -> None:
            self.world = World(size=2)

        def send_each(self, name: str, arguments: Any) -> None:
            raise AssertionError("a command went out")

    config = step_config(is_correction="token_truncate")
    shared = SharedSlots(SlotTrainer(make_engine(config), config), Line())
    row = Row("0/0/0", 0, 0, RowKind.POLICY, StoryRecord("r", "Write.", 5), [1, 2], [3])
    with pytest.raises(UserError, match="row 0/0/0 came without any"):
        shared.first_pass([[row], [row]], 2.0)


def _pair() -> tuple[Inbox, Outbox]:
    inbox = Inbox(1)
    made: list[Outbox] = []
    thread = threading.Thread(target=lambda: made.append(Outbox(inbox.address)))
    thread.start()
    inbox.accept()
    thread.join()
    return inbox, made[0]


def test_a_row_of_an_abandoned_generation_is_not_taken_for_the_next() -> None:
    inbox, outbox = _pair()
    first = inbox.begin()
    outbox.put(first, 7, STORY)
    second = inbox.begin()
    outbox.put(second, 3, STORY)
    assert inbox.take(5.0) == (3, STORY)
    outbox.close()
    inbox.close()


def test_a_follower_that_cannot_write_ends_the_conductors_generation_in_its_words() -> None:
    inbox, outbox = _pair()
    inbox.begin()
    outbox.report("rank 1: the server is gone")
    with pytest.raises(UserError, match=r"^rank 1: the server is gone$"):
        inbox.take(5.0)
    outbox.close()
    inbox.close()


def test_a_word_to_stop_ends_its_own_generation_only() -> None:
    inbox, outbox = _pair()
    number = inbox.begin()
    inbox.stop_generation()
    while not outbox._connection.poll():
        pass
    outbox.check(number + 1)  # too late for its own generation: forgotten
    inbox.begin()
    inbox.stop_generation()
    while not outbox._connection.poll():
        pass
    with pytest.raises(Abandoned):
        outbox.check(number + 1)
    outbox.close()
    inbox.close()
