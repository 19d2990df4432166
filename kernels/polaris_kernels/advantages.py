"""Group advantages: (reward - mean) / std within each group, from rows that were really scored.

    mean_g, std_g  over the scored policy rows of group g (std unbiased)
    A_i = (R_i - mean_g) / (std_g + eps)           policy rows
    A_h = human_weight (R_h - mean_g) / (std_g + eps)    human rows, outside the statistics

GRPO: Shao et al., arXiv 2402.03300. No std (dr_grpo): Liu et al., arXiv 2503.20783. Leave-one-out:
Ahmadian et al., arXiv 2402.14740. Human rows inside the statistics: LUFFY, Yan et al., arXiv
2504.14945.

Shapes: `R rows . G groups`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SCALES = ("group", "batch", "none")
BASELINES = ("mean", "leave_one_out")
ZERO_SPREAD = ("keep", "drop")


@dataclass(frozen=True, kw_only=True)
class AdvantageSpec:
    """How rewards become advantages."""

    scale: str = "group"
    """Divide by the group's std, by the std of all rewards in the call ("batch"), or by nothing."""
    baseline: str = "mean"
    """`mean` of the group, or `leave_one_out`: the mean of the row's peers."""
    eps: float = 1e-6
    """Added to the std."""
    min_std: float = 0.0
    """Noise floor: a group whose std is below is not used."""
    min_scored: int | None = None
    """Scored rows a group needs in its statistics, at least 2; None: max(3, half its policy rows,
    rounded up), or all of them in a group of 2."""
    human_in_statistics: bool = False
    """LUFFY: human rows count in mean and std, and are weighted by 1."""
    zero_spread: str = "keep"
    """Groups of equal rewards: `keep` their rows with advantage 0, or `drop` them from use."""

    def __post_init__(self) -> None:
        for field, allowed in (
            ("scale", SCALES),
            ("baseline", BASELINES),
            ("zero_spread", ZERO_SPREAD),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"AdvantageSpec: {field}={getattr(self, field)!r} is unknown; "
                    f"use one of {', '.join(allowed)}"
                )
        for field in ("eps", "min_std"):
            value = getattr(self, field)
            if not 0.0 <= value < math.inf:
                raise ValueError(f"AdvantageSpec: {field}={value} must be 0 or more")
        if self.min_scored is not None and self.min_scored < 2:
            raise ValueError(
                f"AdvantageSpec: min_scored={self.min_scored} must be 2 or more; "
                "one reward has no spread"
            )


@dataclass(frozen=True)
class GroupAdvantages:
    """Result of `group_advantages`; float tensors are float32."""

    advantages: Tensor
    """(R,) 0 for rows that are not used"""
    used: Tensor
    """(R,) bool: scored rows of used groups; the others belong neither in the loss's numerator nor
    in its denominator (row_weight 0)"""
    group_mean: Tensor
    """(G,) mean of the statistics' rows; nan without any"""
    group_std: Tensor
    """(G,) unbiased std; nan with fewer than 2"""
    group_used: Tensor
    """(G,) bool: enough scored rows, std above the noise floor (and not dropped for zero spread)"""
    zero_spread: Tensor
    """(G,) bool: 2 or more scored rows, all equal"""
    num_scored: Tensor
    """(G,) int64: scored rows in the statistics"""
    human_gap: Tensor
    """(G,) mean reward of scored human rows minus that of scored policy rows; nan without either"""


@torch.no_grad()
def group_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    is_human: Tensor | None = None,
    valid: Tensor | None = None,
    spec: AdvantageSpec | None = None,
    human_weight: float = 1.0,
    num_groups: int | None = None,
) -> GroupAdvantages:
    """Advantages of R rows in G groups; rows in any order, groups of any size.

    Args:
        rewards: (R,) float; nan marks a row whose judgement failed. It is excluded, never a number.
        group_ids: (R,) integers in [0, G).
        is_human: (R,) bool; None: all rows are policy rows.
        valid: (R,) bool, False marks a failed row too.
        spec: None: `AdvantageSpec()`.
        human_weight: factor of human rows' advantages (not with `human_in_statistics`).
        num_groups: G; None: the largest id + 1, which waits for a CUDA device.

    Where the std is 0 (that of a row's group, or of the batch) human rows get 0 as policy rows do:
    a score over a std of 0 has no meaning. The statistics are computed in float64.
    """
    spec = spec or AdvantageSpec()
    _check(rewards, group_ids, is_human, valid, human_weight)
    group = group_ids.long()
    if num_groups is None:
        num_groups = int(group.max()) + 1 if group.numel() else 0
    values = rewards.double()
    scored = ~values.isnan() if valid is None else valid.bool() & ~values.isnan()
    values = torch.where(scored, values, 0.0)
    human = torch.zeros_like(scored) if is_human is None else is_human.bool()
    sums = _GroupSums(group, num_groups)
    counted = scored if spec.human_in_statistics else scored & ~human
    count = sums.of(counted.double())
    mean = sums.of(values * counted) / count
    deviation = torch.where(counted, values - mean[group], 0.0)
    std = (sums.of(deviation.square()) / (count - 1)).sqrt()
    std = torch.where(count > 1, std, torch.nan)
    zero_spread = sums.is_flat(values, counted) & (count > 1)

    size = sums.of((~human).double() if not spec.human_in_statistics else torch.ones_like(values))
    group_used = (count >= _needed(spec, size)) & ~(std < spec.min_std)
    if spec.zero_spread == "drop":
        group_used &= ~zero_spread
    used = scored & group_used[group]

    advantages = values - mean[group]
    if spec.baseline == "leave_one_out":
        own = (count / (count - 1))[group]
        advantages = torch.where(counted, advantages * own, advantages)
    if spec.scale == "group":
        advantages = advantages / (std[group] + spec.eps)
        advantages = torch.where(zero_spread[group], 0.0, advantages)
    elif spec.scale == "batch":
        advantages = advantages / (_std_of(values, counted) + spec.eps)
        # all groups flat and at one level: as under "group", a score over a std of 0
        advantages = torch.where(_is_constant(values, counted), 0.0, advantages)
    if not spec.human_in_statistics:
        advantages = torch.where(human, human_weight * advantages, advantages)
    return GroupAdvantages(
        advantages=torch.where(used, advantages, 0.0).float(),
        used=used,
        group_mean=mean.float(),
        group_std=std.float(),
        group_used=group_used,
        zero_spread=zero_spread,
        num_scored=count.long(),
        human_gap=(sums.mean(values, scored & human) - sums.mean(values, scored & ~human)).float(),
    )


class _GroupSums:
    """Sums over the rows of each group, bitwise repeatable on every device."""

    def __init__(self, group: Tensor, num_groups: int) -> None:
        self.group = group
        self.num_groups = num_groups

    def of(self, values: Tensor) -> Tensor:
        """(R,) -> (G,)"""
        total = values.new_zeros(self.num_groups)
        if values.device.type == "cpu":
            return total.index_add_(0, self.group, values)
        # index_add_ on CUDA adds in no fixed order; index_put_ sorts first
        return total.index_put_((self.group,), values, accumulate=True)

    def mean(self, values: Tensor, chosen: Tensor) -> Tensor:
        """(G,) mean over the chosen rows; nan without any."""
        return self.of(values * chosen) / self.of(chosen.to(values.dtype))

    def is_flat(self, values: Tensor, chosen: Tensor) -> Tensor:
        """(G,) bool: the chosen rows all have one value (their std may still round above 0)."""
        start = values.new_zeros(self.num_groups)
        low = start.fill_(torch.inf).scatter_reduce(
            0, self.group, torch.where(chosen, values, torch.inf), "amin"
        )
        high = start.fill_(-torch.inf).scatter_reduce(
            0, self.group, torch.where(chosen, values, -torch.inf), "amax"
        )
        return low >= high


def _needed(spec: AdvantageSpec, size: Tensor) -> Tensor:
    """(G,) scored rows that a group of `size` statistics rows needs."""
    if spec.min_scored is not None:
        return torch.full_like(size, spec.min_scored)
    # a group of 2 could never reach 3
    return torch.maximum((size / 2).ceil(), size.clamp(2, 3))


def _std_of(values: Tensor, chosen: Tensor) -> Tensor:
    count = chosen.sum()
    mean = (values * chosen).sum() / count
    return (torch.where(chosen, values - mean, 0.0).square().sum() / (count - 1)).sqrt()


def _is_constant(values: Tensor, chosen: Tensor) -> Tensor:
    """() bool: no two chosen values differ."""
    low = torch.where(chosen, values, torch.inf).amin() if values.numel() else values.sum()
    high = torch.where(chosen, values, -torch.inf).amax() if values.numel() else values.sum()
    return low >= high


def _check(
    rewards: Tensor,
    group_ids: Tensor,
    is_human: Tensor | None,
    valid: Tensor | None,
    human_weight: float,
) -> None:
    if rewards.dim() != 1 or not rewards.is_floating_point():
        raise ValueError(
            f"group_advantages: rewards must be (R,) float, got {tuple(rewards.shape)} "
            f"{rewards.dtype}; a failed judgement is nan"
        )
    for name, tensor in (("group_ids", group_ids), ("is_human", is_human), ("valid", valid)):
        if tensor is not None and tensor.shape != rewards.shape:
            raise ValueError(
                f"group_advantages: {name} must be {tuple(rewards.shape)}, one per reward, "
                f"got {tuple(tensor.shape)}"
            )
    if group_ids.is_floating_point():
        raise ValueError(f"group_advantages: group_ids must be integers, got {group_ids.dtype}")
    if not math.isfinite(human_weight):
        raise ValueError(f"group_advantages: human_weight must be finite, got {human_weight}")
