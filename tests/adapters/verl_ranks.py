"""Run under torchrun: each rank holds an equal shard of the head, as in Megatron.

Prints a line of JSON a rank: largest errors of values and gradients against the whole head.
"""

from __future__ import annotations

import json
import os

import torch
import torch.distributed as dist
from torch import Tensor

from polaris_fast.leaving import leave
from polaris_kernels import reference
from polaris_kernels.adapters.verl import linear_cross_entropy

N, D, V = 20, 8, 34


class GatherSequence(torch.autograd.Function):
    """Megatron's gather before the head: whole tokens forward, summed own tokens backward."""

    @staticmethod
    def forward(ctx, mine: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64)
    weight = torch.randn(V, D, generator=g, dtype=torch.float64)
    labels = torch.randint(V, (N,), generator=g)
    a, b = torch.randn(2, N, generator=g, dtype=torch.float64)

    mine = hidden.chunk(world)[rank].clone().requires_grad_()
    shard = weight.chunk(world)[rank].clone().requires_grad_()
    logps, entropy = linear_cross_entropy(
        GatherSequence.apply(mine), shard, labels, 0.7, "none", dist.group.WORLD
    )
    ((logps * a).sum() + (entropy * b).sum()).backward()

    whole = [x.clone().requires_grad_() for x in (hidden, weight)]
    truth = reference.token_logps(reference.logits(*whole, temperature=0.7), labels)
    ((truth.logps * a).sum() + (truth.entropy * b).sum()).backward()
    errors = {
        "logps": logps - truth.logps,
        "entropy": entropy - truth.entropy,
        "hidden": mine.grad - whole[0].grad.chunk(world)[rank],  # type: ignore[operator, union-attr]
        "weight": shard.grad - whole[1].grad.chunk(world)[rank],  # type: ignore[operator, union-attr]
    }
    # one write, so that the ranks' lines do not mix
    os.write(1, (json.dumps({n: float(e.abs().max()) for n, e in errors.items()}) + "\n").encode())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    leave(0)
