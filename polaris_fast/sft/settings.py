"""A run's configuration, made supervised: what only rollouts need is set to what has no effect."""

from __future__ import annotations

from typing import Any

from ..config import Config
from ..config_file import checked_config


def supervised(config: Config) -> Config:
    """The configuration that engine and loss see.

    Temperature 1: the loss is the model's own log-prob, not that of a sampler. No KL, clipping,
    correction or bonus: at ratio 1 a human row with advantage 1 then gives -log p a token.
    """
    changes: dict[str, Any] = {
        "learning_rate": config.sft.learning_rate,
        "temperature": 1.0,
        "num_iterations": 1,
        "loss_type": "dapo",
        "loss_options": {},
        "delta": None,
        "top_entropy_quantile": 1.0,
        "beta": 0.0,
        "kl_importance_correction": False,
        "is_correction": "none",
        "off_policy_mask_threshold": None,
        "entropy_coef": 0.0,
    }
    tree = config.model_dump() | changes
    tree["hri"] |= {"mode": "anchor"}
    # no rollout is drawn: only that a group with a human row is asked for so many
    tree["num_generations"] = max(tree["num_generations"], 4)
    tree["rollout"] |= {"engine": "hf", "max_staleness": 0}
    return checked_config(tree)
