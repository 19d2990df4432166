"""One process, one device, and CPU memory where the optimizer is to be there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from polaris_kernels import GRPOLossOutput, LossRows, LossSpec

from ..config import Config
from ..model.lora import Adapters, whole_state
from ..packing import PackedBatch
from ..types import UserError
from .base import UpdateResult
from .guard import UpdateGuard
from .masters import MasterWeights
from .optimizer import advance, learning_rate_schedule, make_optimizer, restore_schedule
from .policy import Policy, reference_logps, save_model

_STATE = "engine.pt"  # in a checkpoint: all but the weights


class SingleEngine:
    """Model, optimizer, schedule and guard of a one-process run; see `Engine`."""

    def __init__(
        self,
        model: Any,
        config: Config,
        spec: LossSpec,
        *,
        total_updates: int,
        reference: Any | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """
        Args:
            model: as loaded by `model.load`, its head a FusedHead.
            config: the run's configuration.
            spec: the loss.
            total_updates: length of the learning-rate schedule.
            reference: frozen model for the KL term; needed when `beta` > 0 without adapters.
            adapters: those of the model, when they alone are trained.
        """
        self.model, self.config, self.spec = model, config, spec
        self.reference, self.adapters = reference, adapters
        model.train()  # gradient checkpointing looks at it
        self.weights = MasterWeights(
            (p for p in model.parameters() if p.requires_grad),
            device=torch.device("cpu") if config.engine.offload_optimizer else None,
        )
        self.optimizer = make_optimizer(self.weights.masters, config)
        self.scheduler = learning_rate_schedule(self.optimizer, config, total_updates)
        self.policy = Policy(model, config, spec)
        self.guard = UpdateGuard(config.guard)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def num_updates(self) -> int:
        return int(self.scheduler.last_epoch)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        return float(self.scheduler.get_last_lr()[0])

    def ref_logps(self, batch: PackedBatch) -> torch.Tensor:
        return reference_logps(self.model, self.reference, self.adapters, batch, self.config)

    def backward(self, batch: PackedBatch, rows: LossRows) -> GRPOLossOutput:
        out: GRPOLossOutput = self.policy(batch, rows)
        out.loss.backward()
        return out

    def update(self, grad_scale: float) -> UpdateResult:
        masters, learning_rate = self.weights.masters, self.learning_rate
        if grad_scale != 1.0:
            for master in masters:
                if master.grad is not None:
                    master.grad.mul_(grad_scale)
        norm = float(torch.nn.utils.clip_grad_norm_(masters, self.config.max_grad_norm))
        skipped = self.guard.check(norm)
        if skipped is None:
            self.optimizer.step()
            self.weights.publish()
        self.skip_updates(1)  # the schedule follows the count of updates, refused ones too
        self.optimizer.zero_grad(set_to_none=True)
        return UpdateResult(grad_norm=norm, skipped=skipped, learning_rate=learning_rate)

    def skip_updates(self, count: int) -> None:
        advance(self.scheduler, count)

    def discard_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def whole_weights(self) -> AbstractContextManager[None]:
        return nullcontext()

    def save(self, folder: Path) -> None:
        base = self.config.model_name_or_path
        save_model(self.model, self.adapters, whole_state(self.model), folder, base)
        masters = {
            str(i): master.detach()
            for i, (parameter, master) in enumerate(self.weights.pairs)
            if master is not parameter
        }
        torch.save(
            {
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "guard": self.guard.state_dict(),
                "masters": masters,
            },
            folder / _STATE,
        )

    def load(self, folder: Path) -> None:
        """Optimizer moments, schedule position, guard and masters; weights came with the model.

        Rates and coefficients are the configuration's, so that they can be changed on resume.

        Raises:
            UserError: the checkpoint was written by another engine.
        """
        if not (folder / _STATE).is_file():
            raise UserError(
                f"resume_from_checkpoint: {folder} holds no {_STATE}, so engine.kind "
                f"{self.config.engine.kind} has not written it; resume with the engine.kind that "
                "has, or give its weights as model_name_or_path to a new run"
            )
        settings = [
            {k: v for k, v in group.items() if k not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        position = state["scheduler"]["last_epoch"]
        restore_schedule(self.scheduler, self.optimizer, self.config, position)
        self.guard.load_state_dict(state["guard"])
        if self.adapters is not None:
            self.adapters.load(folder)
        with torch.no_grad():
            for i, master in state["masters"].items():
                self.weights.pairs[int(i)][1].copy_(master)
