"""Supervised warm start on the human stories, by the engine that GRPO then trains with.

A human row with advantage 1 and ratio 1 has the gradient of -log p, so the packed slots, the fused
head, the optimizer, several ranks and LoRA are those of `train`, and so are its configurations.

    settings (a run's configuration, made supervised) -> rows -> run (epochs, held-out loss)
"""

from __future__ import annotations

from ..config import Config


def run_sft(config: Config) -> int:
    """Run a configuration to its end; returns the exit status (0 done, 2 user error, 130 stop)."""
    from ..session import conduct
    from .run import SupervisedRun

    return conduct(config, SupervisedRun)


__all__ = ["run_sft"]
