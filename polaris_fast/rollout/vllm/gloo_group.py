"""A gloo process group of one trainer (rank 0) and the workers of its servers.

It stands beside torch's default group, which several training ranks use among themselves. Both
sides make it from this file, so that they cannot disagree.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def join_group(host: str, port: int, rank: int, world_size: int, timeout_s: float) -> Any:
    """The group, once all `world_size` processes have called this; rank 0 listens on `port`.

    Raises:
        RuntimeError: some did not come within `timeout_s`, which limits each broadcast, too.
    """
    limit = timedelta(seconds=timeout_s)
    store = dist.TCPStore(
        host, port, world_size, is_master=rank == 0, timeout=limit, wait_for_workers=False
    )
    return dist.ProcessGroupGloo(
        dist.PrefixStore("polaris_weights", store), rank, world_size, limit
    )


def broadcast(group: Any, tensor: torch.Tensor) -> None:
    """Copy rank 0's contiguous CPU tensor into those of the other ranks.

    Raises:
        RuntimeError: a process is gone, or took longer than the group's limit.
    """
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group.broadcast([tensor], options).wait()
