"""AdamW by torch or bitsandbytes, and the learning-rate schedule by transformers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from ..config import Config
from ..types import UserError


def make_optimizer(parameters: Iterable[nn.Parameter], config: Config) -> torch.optim.Optimizer:
    """The configured optimizer over the given (fp32) parameters.

    Raises:
        UserError: `optim` asks for a package that is not installed.
    """
    if config.optim == "adamw_torch":
        masters = list(parameters)
        # on a CPU torch's default passes over each parameter once an operation, this once in all
        on_cpu = all(master.device.type == "cpu" for master in masters)
        return adamw(masters, config, fused=on_cpu or None)
    optimizer: torch.optim.Optimizer = import_bitsandbytes().optim.AdamW8bit(
        parameters, **_settings(config)
    )
    return optimizer


def adamw(
    parameters: Iterable[nn.Parameter], config: Config, *, fused: bool | None = None
) -> torch.optim.AdamW:
    """torch's AdamW with the run's settings over the given (fp32) parameters."""
    return torch.optim.AdamW(parameters, fused=fused, **_settings(config))


def _settings(config: Config) -> dict[str, Any]:
    return {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }


def import_bitsandbytes() -> Any:
    """The package; UserError names `optim` when it is not there."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"optim: 'adamw_8bit' needs the bitsandbytes package ({error}); install it with "
            "`pip install polaris-fast[8bit]`, or set optim to adamw_torch"
        ) from error
    return bitsandbytes


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
