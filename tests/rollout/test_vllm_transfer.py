"""Sending weights without a server: the gloo group, and calls whose other side never answers."""

from __future__ import annotations

import gc
import socket
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from polaris_fast.merging import Adapted
from polaris_fast.rollout.vllm import transfer
from polaris_fast.rollout.vllm.errors import ServerError
from polaris_fast.rollout.vllm.gloo_group import broadcast, join_group
from polaris_fast.rollout.vllm.side_by_side import both, within
from polaris_fast.rollout.vllm.transfer import CudaTransfer, each_once, ipc_buffer_bytes, one_by_one
from polaris_fast.types import UserError

QUIET: Any = SimpleNamespace(check_alive=lambda grace_s: None, where_to_look=lambda: "see the log")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_worker_receives_the_trainers_tensors(dtype: torch.dtype) -> None:
    port, sent = free_port(), [torch.randn(3, 5).to(dtype), torch.randn(7).to(dtype)]

    def trainer() -> None:
        group = join_group("127.0.0.1", port, 0, 3, 20)
        for tensor in sent:
            broadcast(group, tensor)

    def worker(rank: int) -> list[torch.Tensor]:
        group = join_group("127.0.0.1", port, rank, 3, 20)
        received = [torch.empty_like(tensor) for tensor in sent]
        for tensor in received:
            broadcast(group, tensor)
        return received

    with ThreadPoolExecutor(3) as pool:
        done = pool.submit(trainer)
        workers = [pool.submit(worker, rank) for rank in (1, 2)]
        for received in workers:
            for got, expected in zip(received.result(), sent, strict=True):
                assert torch.equal(got, expected)
        done.result()


def test_a_worker_that_never_comes_is_an_error() -> None:
    with pytest.raises(ServerError, match=r"the weights could not be sent \(.+\); see the log"):
        within(30, lambda: join_group("127.0.0.1", free_port(), 0, 2, 0.2), QUIET)


def test_a_call_that_hangs_ends_at_its_limit() -> None:
    hanging = threading.Event()
    with pytest.raises(ServerError, match=r"not sent within 0\.05 s; see the log.*sync_timeout_s"):
        within(0.05, hanging.wait, QUIET)
    hanging.set()


def test_one_sides_error_does_not_wait_for_the_other() -> None:
    hanging = threading.Event()

    def refuse() -> None:
        raise ServerError("as scripted")

    with pytest.raises(ServerError, match="as scripted"):
        both(refuse, lambda: hanging.wait() and None, QUIET)
    hanging.set()


def test_what_a_transfer_refuses_is_an_error_of_one_line() -> None:
    def refuse() -> None:
        raise ValueError("Tensor 'lm_head.weight' has size 12 bytes\nIncrease the buffer")

    words = r"the weights could not be sent \(Tensor 'lm_head.weight' has size 12 bytes\); see"
    with pytest.raises(ServerError, match=words):
        within(5, refuse, QUIET)


def test_our_own_refusal_keeps_its_words() -> None:
    def refuse() -> None:
        raise UserError("as scripted")

    with pytest.raises(UserError, match=r"^as scripted$"):
        within(5, refuse, QUIET)


def test_the_ipc_buffer_holds_the_largest_tensor() -> None:
    norm = SimpleNamespace(shape=(4096,), dtype=torch.float32)
    embedding = SimpleNamespace(shape=(248_320, 4096), dtype=torch.bfloat16)  # of Qwen3.5-9B
    assert ipc_buffer_bytes([norm]) == 2**30
    assert ipc_buffer_bytes([norm, embedding, norm]) == 248_320 * 4096 * 2


def adapted(seed: int) -> Adapted:
    generator = torch.Generator().manual_seed(seed)
    base, A, B = (torch.randn(shape, generator=generator) for shape in [(6, 5), (2, 5), (6, 2)])
    return Adapted(base.bfloat16(), A, B, 0.5)


def test_adapters_are_merged_one_tensor_at_a_time() -> None:
    state = {f"layer{n}": adapted(n) for n in range(3)}
    alive: list[weakref.ref[torch.Tensor]] = []
    for _, merged in one_by_one(each_once(state)):
        gc.collect()
        assert not any(ref() is not None for ref in alive)
        alive.append(weakref.ref(merged))
        del merged
    assert len(alive) == 3


def test_a_weight_and_its_adapter_are_summed_in_fp32() -> None:
    w = adapted(0)
    ((_, merged),) = one_by_one([("w", w)])
    assert torch.equal(merged, (w.base.float() + 0.5 * (w.B @ w.A)).bfloat16())


def test_vllm_reads_the_weights_when_all_that_wrote_them_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its streams wait for no other."""
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", calls.append)
    device, control = torch.device("cuda", 1), SimpleNamespace(fleet=None)
    sender = CudaTransfer("nccl", control, dict, device)  # type: ignore[arg-type]
    sender._engine = SimpleNamespace(send_weights=lambda: calls.append("send"))
    sender.send()
    assert calls == [device, "send"]


def test_the_trainers_address_is_one_that_every_server_reaches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Probe:
        def __enter__(self) -> Probe:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def connect(self, address: tuple[str, int]) -> None:
            self.seen_by = address[0]

        def getsockname(self) -> tuple[str, int]:
            return f"as {self.seen_by} sees it", 0

    monkeypatch.setattr(transfer.socket, "socket", lambda *_: Probe())
    urls = ["http://127.0.0.1:8000", "http://10.0.0.2:8000", "http://localhost:8001"]
    fleet: Any = SimpleNamespace(clients=[SimpleNamespace(base_url=url) for url in urls])
    assert transfer._own_address(fleet) == "as 10.0.0.2 sees it"
    fleet.clients = fleet.clients[:1]
    assert transfer._own_address(fleet) == "as 127.0.0.1 sees it"
