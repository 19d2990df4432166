"""What the trainer asks of an engine, whatever holds the weights."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from polaris_kernels import GRPOLossOutput, LossRows

from ..packing import PackedBatch


@dataclass(frozen=True)
class UpdateResult:
    """How one optimizer update ended."""

    grad_norm: float  # before clipping; not finite when the gradients are not
    skipped: str | None  # why the guard refused it: "non_finite", "exploding", or None
    learning_rate: float = 0.0  # of this update


class Engine(Protocol):
    """Holds model, optimizer and schedule. One `update` follows any number of `backward`s."""

    model: Any

    @property
    def device(self) -> torch.device:
        """Where packed batches must be."""
        ...

    @property
    def num_updates(self) -> int:
        """Updates of the run so far, refused and skipped ones too: the schedule's position."""
        ...

    def ref_logps(self, batch: PackedBatch) -> torch.Tensor:
        """Log-probs of the batch's targets under the frozen reference, no gradient: (N,) fp32."""
        ...

    def backward(self, batch: PackedBatch, rows: LossRows) -> GRPOLossOutput:
        """Forward and backward of one packed micro-batch; gradients add up."""
        ...

    def update(self, grad_scale: float) -> UpdateResult:
        """Scale the gradients, clip, guard, step, schedule, and clear them."""
        ...

    def skip_updates(self, count: int) -> None:
        """Advance the schedule by `count` updates without touching the weights."""
        ...

    def discard_gradients(self) -> None:
        """Forget what `backward` has summed so far (an abandoned step)."""
        ...

    def whole_weights(self) -> AbstractContextManager[None]:
        """A block in which `model` can be used whole, to write stories with it."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights (`from_pretrained` loads them) and `engine.pt` into an existing folder."""
        ...

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, bit for bit."""
        ...
