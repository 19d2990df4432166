"""The trainer's end of a weight transfer: `gloo` is ours, `nccl` and `ipc` are vLLM's engines."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

import torch

from ...merging import Adapted, Weight, base_of, whole
from .control import Control
from .fleet import Fleet
from .gloo_group import broadcast, join_group
from .side_by_side import both

Weights = Callable[[], Mapping[str, Weight]]  # the same names, types and shapes at each call

_LEAST_BUFFER_BYTES = 2**30  # that `ipc` stages at a time, as vLLM's own default


class Declared(Protocol):
    """What is told of a tensor before it is sent; vLLM's `ParamMeta`."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Transfer(Protocol):
    """Moves the weights once the servers are paused."""

    def connect(self) -> None:
        """Meet the servers' workers; called before the first `send`, and after `disconnect`."""
        ...

    def disconnect(self) -> None:
        """Leave the group of workers, some of which are gone; a send that hangs there ends."""
        ...

    def send(self) -> None:
        """Start, update and finish."""
        ...


class GlooTransfer:
    """One broadcast a parameter from CPU to CPUs; `gloo_worker` receives."""

    def __init__(self, control: Control, weights: Weights, timeout_s: float) -> None:
        self.control, self.weights, self.timeout_s = control, weights, timeout_s
        self._group: Any = None

    def connect(self) -> None:
        fleet = self.control.fleet
        host, port, size = _own_address(fleet), _free_port(), 1 + sum(self.control.sizes)
        info = {
            "master_address": host,
            "master_port": port,
            "rank_offset": 1,
            "world_size": size,
            "timeout_s": self.timeout_s,
        }

        def join() -> None:
            self._group = join_group(host, port, 0, size, self.timeout_s)

        both(lambda: self.control.init_weight_transfer_engine(info), join, fleet)

    def disconnect(self) -> None:
        """Nothing hangs: each broadcast has its limit."""

    @torch.no_grad()
    def send(self) -> None:
        weights = each_once(self.weights())
        self.control.start_weight_update()
        update = {
            "names": [name for name, _ in weights],
            "dtype_names": [str(base_of(w).dtype).removeprefix("torch.") for _, w in weights],
            "shapes": [list(base_of(w).shape) for _, w in weights],
        }

        def send_all() -> None:
            for _, weight in one_by_one(weights):
                broadcast(self._group, weight.cpu().contiguous())

        both(lambda: self.control.update_weights(update), send_all, self.control.fleet)
        self.control.finish_weight_update()


class CudaTransfer:
    """vLLM's own trainer-side engines: `nccl` to other GPUs, `ipc` within one GPU."""

    def __init__(self, kind: str, control: Control, weights: Weights, device: torch.device) -> None:
        self.kind, self.control, self.weights, self.device = kind, control, weights, device
        self._engine: Any = None

    def connect(self) -> None:
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

        weights = self.weights
        bases = [(name, base_of(weight)) for name, weight in each_once(weights())]
        declared = [ParamMeta(name, base.dtype, tuple(base.shape)) for name, base in bases]

        class Source(WeightSource):
            def metadata(self) -> list[Any]:
                return declared

            def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
                return one_by_one(each_once(weights()))

        with torch.cuda.device(self.device):
            self._engine = self._trainer_init(Source())

    def disconnect(self) -> None:
        # A kernel that waits for a lost worker would block vLLM's streams, which the next group
        # uses too, and every wait for the whole device.
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()

    @torch.no_grad()
    def send(self) -> None:
        """vLLM packs weights on streams of its own, which wait for nothing.

        So what wrote them (the optimizer, a gather) must be over. What is merged on the way is made
        on the very stream that packs it.
        """
        with torch.cuda.device(self.device):
            torch.cuda.synchronize(self.device)
            self._engine.send_weights()

    def _trainer_init(self, source: Any) -> Any:
        if self.kind == "ipc":
            return ipc_alone(self.control, source)
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        info = NCCLTrainerInitInfo(
            master_address=_own_address(self.control.fleet),
            master_port=_free_port(),
            world_size=1 + sum(self.control.sizes),
            rank=0,
        )
        return WeightTransferTrainerFactory.trainer_init(info, client=self.control, source=source)


def ipc_alone(control: Control, source: Any) -> Any:
    """vLLM's `ipc` engine for a rank that serves its own server, whatever other ranks do.

    vLLM's own gathers the handles of all ranks of the process group, which must then all send at
    once; a server that is started again is sent weights by its own rank alone. Its sending refuses
    a tensor that does not fit into its buffer, so the buffer follows the largest.
    """
    from vllm.distributed.weight_transfer.ipc_engine import (
        IPCTrainerInitInfo,
        IPCTrainerWeightTransferEngine,
    )

    class Alone(IPCTrainerWeightTransferEngine):
        def _all_gather_and_merge_handles(self, handles: list[Any]) -> list[Any]:
            return handles

        def _post_send_sync(self) -> None:
            torch.cuda.synchronize()
            torch.cuda.ipc_collect()  # the buffer, once the server has let go of it

    size = ipc_buffer_bytes(source.metadata())
    info = IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=size)
    return Alone.trainer_init(info, client=control, source=source)


def ipc_buffer_bytes(declared: Iterable[Declared]) -> int:
    """Size of a buffer that holds any one of these tensors."""
    sizes = [math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in declared]
    return max([_LEAST_BUFFER_BYTES, *sizes])


def each_once(state: Mapping[str, Weight]) -> list[tuple[str, Weight]]:
    """(name, weight) without the second name of tied weights, as checkpoints have them."""
    first: dict[tuple[int, torch.Size, int], str] = {}
    for name, weight in state.items():
        base = base_of(weight)
        adapter = weight.A.data_ptr() if isinstance(weight, Adapted) else 0
        first.setdefault((base.data_ptr(), base.shape, adapter), name)
    return [(name, state[name]) for name in first.values()]


@torch.no_grad()
def one_by_one(weights: Iterable[tuple[str, Weight]]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor), each merged when it is taken and kept by nobody here."""
    for name, weight in weights:
        yield name, whole(weight).detach()


def _own_address(fleet: Fleet) -> str:
    """This machine's address as the servers see it: the others', where one is on this machine."""
    parts = max((urlsplit(c.base_url) for c in fleet.clients), key=_is_elsewhere)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname or "127.0.0.1", parts.port or 80))  # sends nothing
        return str(probe.getsockname()[0])


def _is_elsewhere(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    return host not in ("localhost", "::1") and not host.startswith("127.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
