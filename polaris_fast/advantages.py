"""Advantages of complete groups. The formula has one owner, `polaris_kernels.group_advantages`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from polaris_kernels import AdvantageSpec, group_advantages

from .config import Config
from .types import Group, RowKind


def assign_advantages(groups: Sequence[Group], config: Config, human_weight: float) -> None:
    """Fill `advantage` and `trained` of every row, and `dropped` of groups that cannot train.

    Args:
        groups: complete groups; with `scale_rewards: batch`, all of the step.
        config: the run's configuration.
        human_weight: weight of the human rows' advantage at this step.
    """
    rows = [row for group in groups for row in group.rows]
    if not rows:
        return
    nan = float("nan")  # a failed row has no reward; the kernel reads nan as "not there"
    result = group_advantages(
        torch.tensor([r.reward.total if r.reward else nan for r in rows], dtype=torch.float64),
        torch.tensor([i for i, group in enumerate(groups) for _ in group.rows]),
        is_human=torch.tensor([row.kind is RowKind.HUMAN for row in rows]),
        spec=advantage_spec(config),
        human_weight=human_weight,
        num_groups=len(groups),
    )
    floor = advantage_spec(config).min_std
    values = result.advantages.tolist()
    for row, advantage, used in zip(rows, values, result.used.tolist(), strict=True):
        row.trained = used
        row.advantage = advantage if used else 0.0
    for group, flat, std, kept in zip(
        groups,
        result.zero_spread.tolist(),
        result.group_std.tolist(),
        result.group_used.tolist(),
        strict=True,
    ):
        if not kept:
            noisy = std < floor  # False for nan: fewer than two scored rows
            group.dropped = "zero_spread" if flat else "noise_floor" if noisy else "too_few_scored"


def noise_floor(config: Config) -> float:
    """Spread of rewards that the judge's own noise makes; 0 where it is unknown or no judge is."""
    return 0.0 if config.reward.function is not None else config.judge.noise_std or 0.0


def advantage_spec(config: Config) -> AdvantageSpec:
    """The run's settings in the kernels' terms."""
    return AdvantageSpec(
        scale=config.scale_rewards,
        human_in_statistics=config.hri.mode == "luffy",
        zero_spread="drop",  # equal rewards say nothing: the group is counted and left out
        min_std=noise_floor(config),
    )
