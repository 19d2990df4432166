"""Every rank holds the whole model; gradients are added over ranks before each update."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from .base import UpdateResult
from .single import SingleEngine


class ReplicatedEngine(SingleEngine):
    """`SingleEngine` on each of several ranks, in step.

    Losses are divided by the global batch's count already, so gradients are *summed*. Every rank
    then clips, guards and updates the same numbers, and the weights stay equal bit for bit.
    """

    def update(self, grad_scale: float) -> UpdateResult:
        """All-reduce, then `SingleEngine.update`."""
        for master in self.weights.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            dist.all_reduce(master.grad)
        return super().update(grad_scale)

    def save(self, folder: Path) -> None:
        """By rank 0 alone: all hold the same."""
        if dist.get_rank() == 0:
            super().save(folder)
