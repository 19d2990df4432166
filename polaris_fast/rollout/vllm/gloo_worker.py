"""The server's side of the `gloo` weight transfer: a vLLM weight-transfer engine for CPUs.

vLLM's own engines (`nccl`, `ipc`) need CUDA. This module runs inside vLLM's workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from .gloo_group import broadcast, join_group


@dataclass
class GlooInit(WeightTransferInitInfo):
    """Where the trainer listens, and which ranks of the group this server's workers are."""

    master_address: str
    master_port: int
    rank_offset: int  # rank of the server's first worker
    world_size: int  # trainer and workers of all servers
    timeout_s: float


@dataclass
class GlooUpdate(WeightTransferUpdateInfo):
    """The tensors to come, in the order they are sent."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooReceiver(WeightTransferEngine[GlooInit, GlooUpdate]):
    """Receives checkpoint-format weights by broadcast and loads them layer by layer."""

    init_info_cls = GlooInit
    update_info_cls = GlooUpdate

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group: Any = None

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        here = self.parallel_config
        rank = init_info.rank_offset + here.data_parallel_index * here.world_size + here.rank
        self._group = join_group(
            init_info.master_address,
            init_info.master_port,
            rank,
            init_info.world_size,
            init_info.timeout_s,
        )

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As in the base class, without its wait for an accelerator."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdate) -> None:
        if self._group is None:
            raise RuntimeError("gloo weight transfer: init_weight_transfer_engine was not called")
        self.model.load_weights(self._arriving(update_info))

    def shutdown(self) -> None:
        self._group = None

    def _arriving(self, info: GlooUpdate) -> Iterator[tuple[str, torch.Tensor]]:
        for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            broadcast(self._group, tensor)
            yield name, tensor
