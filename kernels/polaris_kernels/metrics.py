"""Training metrics that fall out of the loss, as device tensors: sums and counts, never means.

Sums of several micro-batches (or ranks) add up; `merge_metrics` does it, and `mean_metrics` turns
the totals into the names that TRL logs. Nothing here waits for the device.

Shapes: `K tokens . R rows`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import TokenView

Metrics = dict[str, Tensor]
"""Scalars by name: `sum_*` and `num_*` add over micro-batches, `max_*` takes the largest.

Always there: `num_tokens`, `num_human_tokens`, `num_rows` (rows with loss tokens), `sum_loss` (the
loss itself), `sum_loss_human` (its part from human rows), `sum_logp`, `sum_logp_human`,
`sum_entropy`, `sum_entropy_human`. With a built-in loss: `sum_ratio`, `max_ratio` and
`sum_approx_kl` (k3 between this forward and old_logps; with a sequence ratio, of the rows' means).
With clipping: `num_clip_low`, `num_clip_high`. With ref_logps: `sum_kl` (not times beta). With an
importance correction: `sum_is_weight`, `max_is_weight`. With `clip_cov` (tokens taken out) and
`kl_cov` (tokens penalised): `num_selected`. With `top_entropy_quantile`: `num_high_entropy`, the
tokens that kept their loss. Every sum runs over tokens with loss.
"""


@dataclass(frozen=True)
class TokenColumns:
    """Per-token quantities of a built-in loss that metrics are made from; each (K,) or None."""

    log_weight: Tensor | None = None
    kl: Tensor | None = None
    is_weight: Tensor | None = None
    clipped_low: Tensor | None = None
    clipped_high: Tensor | None = None
    selected: Tensor | None = None
    high_entropy: Tensor | None = None


@torch.no_grad()
def collect_metrics(
    view: TokenView, logps: Tensor, entropy: Tensor, loss: Tensor, columns: TokenColumns
) -> Metrics:
    """Metrics of K tokens; `loss` (K,) already carries the tokens' weights."""
    dtype = logps.dtype
    summed = {"num_tokens": torch.ones_like(logps), "sum_loss": loss}
    summed |= {"sum_logp": logps, "sum_entropy": entropy}
    largest: dict[str, Tensor] = {}
    if columns.log_weight is not None:
        ratio = columns.log_weight.exp()
        summed["sum_ratio"] = largest["max_ratio"] = ratio
        summed["sum_approx_kl"] = ratio - 1 - columns.log_weight
    if columns.kl is not None:
        summed["sum_kl"] = columns.kl
    if columns.is_weight is not None:
        summed["sum_is_weight"] = largest["max_is_weight"] = columns.is_weight
    flags = {
        "num_clip_low": columns.clipped_low,
        "num_clip_high": columns.clipped_high,
        "num_selected": columns.selected,
        "num_high_entropy": columns.high_entropy,
    }
    summed |= {name: flag.to(dtype) for name, flag in flags.items() if flag is not None}
    if view.is_human is not None:
        human = view.is_human.to(dtype)
        for name in ("num_tokens", "sum_loss", "sum_logp", "sum_entropy"):
            summed[_human_name(name)] = summed[name] * human
    # one stacked reduction instead of a dozen small ones
    stacked = view.with_loss(torch.stack(list(summed.values())))
    metrics: Metrics = dict(zip(summed, stacked.sum(1).unbind(), strict=True))
    if view.is_human is None:
        zero = torch.zeros_like(metrics["num_tokens"])
        for name in ("num_tokens", "sum_loss", "sum_logp", "sum_entropy"):
            metrics[_human_name(name)] = zero
    metrics["num_rows"] = (view.row_tokens > 0).sum().to(dtype)
    for name, values in largest.items():
        kept = view.with_loss(values)
        metrics[name] = kept.max() if kept.numel() else kept.new_zeros(())
    return metrics


def merge_metrics(parts: Iterable[Metrics]) -> Metrics:
    """Totals over micro-batches: sums and counts add, `max_*` takes the largest."""
    total: Metrics = {}
    for part in parts:
        for name, value in part.items():
            if name not in total:
                total[name] = value
            elif name.startswith("max_"):
                total[name] = torch.maximum(total[name], value)
            else:
                total[name] = total[name] + value
    return total


def mean_metrics(totals: Metrics) -> Metrics:
    """Token means under TRL's names, from merged totals; still on the device.

    `loss`, `loss/human`, `loss/policy`, `entropy`, `entropy/human`, `logp`, `logp/human`, and,
    where the totals have them, `kl`, `approx_kl`, `ratio/mean`, `ratio/max`,
    `clip_ratio/low_mean`, `clip_ratio/high_mean`, `clip_ratio/region_mean`, `is_weight/mean`,
    `is_weight/max`, `selected/mean`, `high_entropy/mean`.
    """
    tokens = totals["num_tokens"].clamp(min=1)
    human_tokens = totals["num_human_tokens"].clamp(min=1)
    means = {
        "loss": totals["sum_loss"],
        "loss/human": totals["sum_loss_human"],
        "loss/policy": totals["sum_loss"] - totals["sum_loss_human"],
        "entropy": totals["sum_entropy"] / tokens,
        "entropy/human": totals["sum_entropy_human"] / human_tokens,
        "logp": totals["sum_logp"] / tokens,
        "logp/human": totals["sum_logp_human"] / human_tokens,
    }
    for name, key in _OPTIONAL_MEANS.items():
        if key in totals:
            means[name] = totals[key] / tokens
    for name, key in (("ratio/max", "max_ratio"), ("is_weight/max", "max_is_weight")):
        if key in totals:
            means[name] = totals[key]
    if "clip_ratio/low_mean" in means:
        means["clip_ratio/region_mean"] = (
            means["clip_ratio/low_mean"] + means["clip_ratio/high_mean"]
        )
    return means


_OPTIONAL_MEANS = {
    "kl": "sum_kl",
    "approx_kl": "sum_approx_kl",
    "ratio/mean": "sum_ratio",
    "clip_ratio/low_mean": "num_clip_low",
    "clip_ratio/high_mean": "num_clip_high",
    "is_weight/mean": "sum_is_weight",
    "selected/mean": "num_selected",
    "high_entropy/mean": "num_high_entropy",
}


def _human_name(name: str) -> str:
    return "num_human_tokens" if name == "num_tokens" else f"{name}_human"
