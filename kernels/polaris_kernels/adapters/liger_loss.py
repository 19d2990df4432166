"""Liger's GRPO options as a `LossSpec` and `LossRows`; both of Liger's entry points use it.

Shapes: `B rows . L completion positions`.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..metrics import Metrics
from ..rows import LossRows
from ..spec import CLIPPED_LOSSES, LossSpec

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
_TOKEN_LEVEL_ONLY = ("cispo", "sapo", "vespo")
_TOKEN_SUMS = ("dapo", "cispo", "vespo")


def make_spec(
    caller: str,
    *,
    loss_type: str,
    importance_sampling_level: str,
    max_completion_length: int | None,
    delta: float | None,
    **options: Any,
) -> LossSpec:
    """The spec of Liger's keywords; `options` are further fields of `LossSpec`.

    Raises:
        ValueError: an unknown loss type or level, or a combination that Liger refuses too.
    """
    if loss_type not in LOSSES:
        raise ValueError(
            f"{caller}: loss_type={loss_type!r} is unknown; use one of {', '.join(LOSSES)}, or "
            "linear_grpo_loss with a LossSpec for the others"
        )
    if importance_sampling_level not in ("token", "sequence"):
        raise ValueError(
            f"{caller}: importance_sampling_level={importance_sampling_level!r} is unknown; use "
            "'token' or 'sequence'"
        )
    if importance_sampling_level == "sequence" and loss_type in _TOKEN_LEVEL_ONLY:
        raise ValueError(
            f"{caller}: importance_sampling_level='sequence' is not for loss_type={loss_type!r}; "
            "use 'token'"
        )
    if delta is not None and loss_type not in CLIPPED_LOSSES:
        raise ValueError(f"{caller}: delta={delta} is not for loss_type={loss_type!r}; leave it")
    return LossSpec(
        loss_type=loss_type,
        ratio_level=importance_sampling_level if loss_type in CLIPPED_LOSSES else None,
        max_completion_length=max_completion_length if loss_type == "dr_grpo" else None,
        delta=delta,
        **options,
    )


def make_rows(
    caller: str,
    spec: LossSpec,
    *,
    completion_mask: Tensor | None,
    shape: tuple[int, int],
    advantages: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    vllm_is_ratio: Tensor | None,
    num_items_in_batch: Tensor | float | None,
) -> tuple[LossRows, LossSpec]:
    """Rows of a padded batch, and the spec with the correction that the ratio calls for.

    Args:
        completion_mask: (B, L) bool or 0/1; None: every position.
        shape: (B, L).
        advantages: (B,).
        old_logps, ref_logps: (B, L); None: this forward's.
        vllm_is_ratio: (B, L), (B, 1) or (B,), a factor of the policy term that already holds
            whatever truncation is wanted.
        num_items_in_batch: loss tokens of the whole batch, for the losses that divide by tokens.
    """
    device = advantages.device
    mask = completion_mask
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=device)
    rollout = None
    if vllm_is_ratio is not None:
        if spec.loss_type == "vespo" and vllm_is_ratio.shape != shape:
            raise ValueError(
                f"{caller}: vespo needs vllm_is_ratio per token {shape}, got "
                f"{tuple(vllm_is_ratio.shape)}; it multiplies a row's token ratios"
            )
        rollout, old_logps = _as_rollout(caller, vllm_is_ratio, shape, old_logps)
        spec = replace(spec, is_correction="token_truncate", is_cap=None)
    if spec.beta and ref_logps is None:
        # without a reference Liger takes this forward's own log-probs: no KL, and no slope
        spec = replace(spec, beta=0.0)
    rows = LossRows.from_padded(
        mask=mask,
        advantages=advantages,
        old_logps=old_logps,
        ref_logps=ref_logps if spec.beta else None,
        rollout_logps=rollout,
        denominator=_denominator(spec, mask, num_items_in_batch),
    )
    return rows, spec


def make_metrics(spec: LossSpec, found: Metrics) -> list[Tensor]:
    """Liger's metrics: the mean KL where there is one, then the share of clipped tokens."""
    tokens = found["num_tokens"].clamp(min=1)
    clipped = sum(
        (found[name] for name in ("num_clip_low", "num_clip_high") if name in found),
        torch.zeros_like(tokens),
    )
    kl = found.get("sum_kl", torch.zeros_like(tokens))
    means = [kl / tokens] if spec.beta else []
    return [*means, clipped / tokens]


def _as_rollout(
    caller: str, ratio: Tensor, shape: tuple[int, int], old_logps: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Log-probs whose difference from `old_logps` is the log of the ratio."""
    if ratio.dim() == 1:
        ratio = ratio.unsqueeze(1)
    if ratio.dim() != 2 or ratio.shape[0] != shape[0] or ratio.shape[1] not in (1, shape[1]):
        raise ValueError(
            f"{caller}: vllm_is_ratio must be {shape}, ({shape[0]}, 1) or ({shape[0]},), got "
            f"{tuple(ratio.shape)}"
        )
    if old_logps is None:
        raise ValueError(
            f"{caller}: vllm_is_ratio needs old_per_token_logps; the ratio is old / rollout, so "
            "the old log-probs are there where it comes from"
        )
    return old_logps - ratio.expand(shape).log(), old_logps


def _denominator(
    spec: LossSpec, mask: Tensor, num_items_in_batch: Tensor | float | None
) -> float | Tensor:
    """What Liger divides the summed loss by."""
    if spec.loss_type not in _TOKEN_SUMS:
        if spec.loss_type == "bnpo":
            return mask.sum().clamp(min=1).float()
        return float(mask.shape[0])
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if num_items_in_batch is not None:
        tokens = torch.as_tensor(num_items_in_batch, device=mask.device, dtype=torch.float32)
    else:
        tokens = mask.sum().float()
        if world > 1:
            dist.all_reduce(tokens)
    return (tokens / world).clamp(min=1.0)
