"""Who this process is among the run's processes; launched by `torchrun` or `deepspeed`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ..types import UserError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class World:
    """The place of this process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_conductor(self) -> bool:
        """Rank 0: reads, judges, plans, logs and saves."""
        return self.rank == 0


@contextmanager
def join_world() -> Iterator[World]:
    """This process's world from the launcher's environment; its process group while inside.

    Without a launcher there is one rank and no process group. No GPU is touched: whether the rank
    has one, and is to use it, is `choose_device`'s.

    Raises:
        UserError: the launcher's variables are incomplete or no numbers.
    """
    world = _from_environment()
    if world is None:
        yield World()
        return
    # Tensors on GPUs travel by NCCL, commands and CPU tensors by gloo.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if not dist.is_initialized():  # a launcher of our tests may have done it
        dist.init_process_group(backend)
    try:
        yield world
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _from_environment() -> World | None:
    found = {name: os.environ.get(name) for name in _VARIABLES}
    if found["WORLD_SIZE"] is None:
        return None
    numbers = {}
    for name, value in found.items():
        if value is None or not value.isdigit():
            raise UserError(
                f"environment variable {name}: got {value!r}, a launcher sets a whole number; "
                "start with `torchrun --nproc-per-node N -m polaris_fast.train ...`, or unset "
                "WORLD_SIZE"
            )
        numbers[name] = int(value)
    return World(numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"])
