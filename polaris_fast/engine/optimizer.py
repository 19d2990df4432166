"""AdamW by torch and the learning-rate schedule by transformers, the same under every engine."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from ..config import Config


def adamw(parameters: Iterable[nn.Parameter], config: Config) -> torch.optim.AdamW:
    """The run's optimizer over the given (fp32) parameters."""
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )


def learning_rate_schedule(optimizer: Any, config: Config, total_updates: int) -> Any:
    """The run's schedule, one step an update."""
    return get_scheduler(
        config.lr_scheduler_type,
        optimizer,
        num_warmup_steps=config.warmup_steps * config.num_iterations,
        num_training_steps=total_updates,
    )


def advance(scheduler: Any, count: int) -> None:
    """`count` steps of the schedule, refused updates too."""
    with warnings.catch_warnings():
        # torch warns when the run's very first update is one that was refused.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler")
        for _ in range(count):
            scheduler.step()


def restore_schedule(scheduler: Any, optimizer: Any, config: Config, position: int) -> None:
    """Go on at `position` updates, at the configuration's own rate: it may differ on resume."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = config.learning_rate
    scheduler.base_lrs = [config.learning_rate] * len(scheduler.base_lrs)
    scheduler.last_epoch = position - 1
    advance(scheduler, 1)
