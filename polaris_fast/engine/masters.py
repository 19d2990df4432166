"""fp32 master weights and gradient sums for a model kept in 16 bits, or on another device.

A bf16 weight has 8 significant bits: an update of 1e-6 vanishes in it, and so does the last of
many accumulated micro-batches. Both are kept in fp32 here; the model sees the rounded copy.

Masters in CPU memory take gradients, moments and the update there with them (as ZeRO-Offload does,
arXiv 2101.06840): of training state a GPU then holds the model alone, and one gradient at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class MasterWeights:
    """The parameters an optimizer should see; the model's own when they are fp32 already."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, device: torch.device | None = None
    ) -> None:
        """
        Args:
            parameters: the model's, those that are trained.
            device: where masters and gradient sums are kept; None: beside the model.
        """
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        for parameter in parameters:
            if parameter.dtype == torch.float32 and device is None:
                self.pairs.append((parameter, parameter))
                continue
            copied = parameter.detach().to(device or parameter.device, torch.float32, copy=True)
            master = nn.Parameter(copied)
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


def _into(master: nn.Parameter) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        grad = parameter.grad
        assert grad is not None
        if grad.device != master.device:
            grad = _on_host(grad)
        if master.grad is None:
            master.grad = grad.float()
        else:
            master.grad.add_(grad)
        parameter.grad = None

    return add


def _on_host(grad: Tensor) -> Tensor:
    """A copy in pinned memory, which torch keeps for the next one: copies into it are fast."""
    host = torch.empty(grad.shape, dtype=grad.dtype, pin_memory=True)
    return host.copy_(grad)
