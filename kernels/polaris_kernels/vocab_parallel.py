"""A vocabulary cut over a process group: who holds which rows of the head.

    vocab = VocabParallel.of_shard(head_shard, group)
    linear_grpo_loss(hidden, head_shard, targets, rows=rows, vocab=vocab)

Every rank of the group calls with the same hidden states, targets and rows, and with its own rows
of W (and of the bias). Log-probs, entropies and the loss come out the same, to the bit, on every
rank. As in a column-parallel layer (Megatron-LM, arXiv 1909.08053), the gradient of a shard is its
own rank's alone, and the hidden gradient, to which every shard adds, is summed over the group
before it is handed on: the caller sums nothing.

Shapes: `V ids of the whole vocabulary . V_r rows of this rank's shard`.
"""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabParallel:
    """The shards of a head, in rank order; the same on every rank of the group."""

    group: "dist.ProcessGroup" = field(repr=False)
    sizes: tuple[int, ...]
    """rows of each rank's shard, uneven or not, each above 0"""
    rank: int
    """this process's place in the group"""

    @classmethod
    def of_shard(cls, weight: Tensor, group: "dist.ProcessGroup") -> "VocabParallel":
        """Ask the group for its shards. A collective that waits: once per model, not per step.

        Args:
            weight: (V_r, D) this rank's rows; rank r's begin where those of rank r - 1 end.
            group: ranks that hold the vocabulary between them, in that order.
        """
        mine = torch.tensor([weight.shape[0]], device=weight.device)
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, mine, group=group)
        return cls(group, tuple(int(size) for size in gathered), dist.get_rank(group))

    def __post_init__(self) -> None:
        if not 0 <= self.rank < len(self.sizes):
            raise ValueError(
                f"VocabParallel: rank must be in [0, {len(self.sizes)}), got {self.rank}"
            )
        # the same on all ranks, so that all of them stop here and none waits for another
        for rank, size in enumerate(self.sizes):
            if size < 1:
                raise ValueError(
                    f"VocabParallel: rank {rank} of {len(self.sizes)} holds {size} rows of the "
                    f"head (rows of all ranks: {self.sizes}); give every rank at least one, or "
                    "use a smaller group"
                )

    @property
    def total(self) -> int:
        """V"""
        return sum(self.sizes)

    @property
    def first_row(self) -> int:
        """The id of this shard's first row."""
        return sum(self.sizes[: self.rank])

    def check(self, weight: Tensor, caller: str) -> None:
        """ValueError when `weight` is not the shard that was announced."""
        if weight.shape[0] != self.sizes[self.rank]:
            raise ValueError(
                f"{caller}: weight must be rank {self.rank}'s shard of {self.sizes[self.rank]} "
                f"rows, got {weight.shape[0]}; make VocabParallel.of_shard again"
            )
