"""One process, one device: AdamW by torch, schedule by transformers.

T packed tokens · N targets · D hidden.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import get_scheduler

from polaris_kernels import GRPOLossOutput, LossRows, LossSpec

from ..config import Config
from ..model.packed import packed_hidden_states
from ..packing import PackedBatch
from .base import UpdateResult
from .guard import UpdateGuard
from .masters import MasterWeights


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
    ) -> None:
        """
        Args:
            model: as loaded by `model.load`, its head a FusedHead.
            config: the run's configuration.
            spec: the loss.
            total_updates: length of the learning-rate schedule.
            reference: frozen model for the KL term; needed when `beta` > 0.
        """
        self.model, self.config, self.spec, self.reference = model, config, spec, reference
        model.train()  # gradient checkpointing looks at it
        self.weights = MasterWeights(p for p in model.parameters() if p.requires_grad)
        self.optimizer = torch.optim.AdamW(
            self.weights.masters,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        )
        self.scheduler = get_scheduler(
            config.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=config.warmup_steps * config.num_iterations,
            num_training_steps=total_updates,
        )
        self.guard = UpdateGuard(config.guard)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        return float(self.scheduler.get_last_lr()[0])

    def ref_logps(self, batch: PackedBatch) -> torch.Tensor:
        assert self.reference is not None
        return self._logps(self.reference, batch)

    def backward(self, batch: PackedBatch, rows: LossRows) -> GRPOLossOutput:
        hidden = packed_hidden_states(self.model, batch)[batch.logit_positions]  # (N, D)
        out: GRPOLossOutput = self.model.lm_head(
            hidden,
            targets=batch.targets,
            rows=rows,
            spec=self.spec,
            temperature=self.config.temperature,
            logits_dtype=self.config.logits_dtype,
        )
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
        with warnings.catch_warnings():
            # torch warns when the run's very first update is one that was refused.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler")
            for _ in range(count):
                self.scheduler.step()

    def discard_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
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
            folder / "engine.pt",
        )

    def load(self, folder: Path) -> None:
        """Optimizer moments, schedule position, guard and masters; weights came with the model.

        Rates and coefficients are the configuration's, so that they can be changed on resume.
        """
        settings = [
            {k: v for k, v in group.items() if k not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        state = torch.load(folder / "engine.pt", map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        position = state["scheduler"]["last_epoch"]
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own, lr=self.config.learning_rate)
            group["initial_lr"] = self.config.learning_rate
        self.scheduler.last_epoch = position - 1
        self.skip_updates(1)
        self.guard.load_state_dict(state["guard"])
        with torch.no_grad():
            for i, master in state["masters"].items():
                self.weights.pairs[int(i)][1].copy_(master)

    @torch.no_grad()
    def _logps(self, model: Any, batch: PackedBatch) -> torch.Tensor:
        hidden = packed_hidden_states(model, batch)[batch.logit_positions]
        logps: torch.Tensor = model.lm_head.logps(
            hidden,
            targets=batch.targets,
            temperature=self.config.temperature,
            logits_dtype=self.config.logits_dtype,
        ).logps
        return logps
