"""vLLM's own `ipc` sending, as the trainer uses it; only the GPU's memory is stood in for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from polaris_fast.rollout.vllm import transfer

STATE = {
    "small": torch.arange(4, dtype=torch.float32),
    "largest": torch.arange(100, dtype=torch.bfloat16).view(10, 10),
    "last": torch.arange(8, dtype=torch.float32),
}


class Receiver:
    """A server's side: reads the shared buffer at each update, as a worker would."""

    def __init__(self) -> None:
        self.received: dict[str, torch.Tensor] = {}
        self.log: list[Any] = []

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.log.append(init_info)

    def start_weight_update(self) -> None:
        self.log.append("start")

    def update_weights(self, update: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.packed_tensor import unpack_tensor

        self.log.append(update["names"])
        (buffer,) = update["ipc_handles"].values()
        dtypes = [getattr(torch, name) for name in update["dtype_names"]]
        used = buffer[: sum(update["tensor_sizes"])]
        rows = unpack_tensor(
            used, update["names"], update["shapes"], dtypes, update["tensor_sizes"]
        )
        self.received |= {name: tensor.clone() for name, tensor in rows}

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.log.append("finish")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tensors of the GPU lie in CPU memory, and a handle is the tensor itself; the calls made."""
    from vllm.distributed.weight_transfer import packed_tensor

    calls: list[str] = []
    stream = SimpleNamespace(synchronize=lambda: calls.append("stream"))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **(k | {"device": "cpu"})))
    monkeypatch.setattr(packed_tensor, "reduce_tensor", lambda tensor: (None, tensor))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="u"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: calls.append("ipc_collect"))
    return calls


def send(receiver: Receiver) -> Any:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):
        def metadata(self) -> list[Any]:
            return [ParamMeta(name, w.dtype, tuple(w.shape)) for name, w in STATE.items()]

        def __iter__(self) -> Any:
            return iter(STATE.items())

    engine = transfer.ipc_alone(receiver, Source())  # type: ignore[arg-type]
    engine.send_weights()
    return engine


def test_a_tensor_larger_than_the_buffer_makes_it_larger(
    monkeypatch: pytest.MonkeyPatch, on_cpu: list[str]
) -> None:
    monkeypatch.setattr(transfer, "_LEAST_BUFFER_BYTES", 64)  # 2**30 on a GPU
    receiver = Receiver()
    assert send(receiver).packed_buffer_size_bytes == 200
    assert receiver.received.keys() == STATE.keys()
    for name, weight in STATE.items():
        assert torch.equal(receiver.received[name], weight)
    assert receiver.log == [{"packed": True}, "start", ["small"], ["largest"], ["last"], "finish"]


def test_the_buffer_is_reclaimed_after_the_server_has_let_go(on_cpu: list[str]) -> None:
    send(Receiver())
    assert on_cpu[-2:] == ["synchronize", "ipc_collect"]
