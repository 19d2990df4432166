"""fp32 master weights and gradient sums for a model kept in 16 bits.

A bf16 weight has 8 significant bits: an update of 1e-6 vanishes in it, and so does the last of
many accumulated micro-batches. Both are kept in fp32 here; the model sees the rounded copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn


class MasterWeights:
    """The parameters an optimizer should see; the model's own when they are fp32 already."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        for parameter in parameters:
            if parameter.dtype == torch.float32:
                self.pairs.append((parameter, parameter))
                continue
            master = nn.Parameter(parameter.detach().float())
            self.pairs.append((parameter, master))
            parameter.register_post_accumulate_grad_hook(_into(master))

    @property
    def masters(self) -> list[nn.Parameter]:
        return [master for _, master in self.pairs]

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model."""
        for parameter, master in self.pairs:
            if master is not parameter:
                parameter.copy_(master)


def _into(master: nn.Parameter) -> Callable[[torch.Tensor], None]:
    def add(parameter: torch.Tensor) -> None:
        grad = parameter.grad
        assert grad is not None
        if master.grad is None:
            master.grad = grad.float()
        else:
            master.grad.add_(grad)
        parameter.grad = None

    return add
