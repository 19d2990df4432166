"""Drawing one token a row: penalty, temperature, top-k, top-p, inverse CDF.

B rows · V vocabulary · K candidates. A row uses one uniform number a token, so its text depends on
its own stream alone: rows may leave or join the batch without changing their neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import SamplingParams


@dataclass(frozen=True)
class Draw:
    """One sampled token a row."""

    tokens: torch.Tensor  # (B,) int64
    rollout_logps: torch.Tensor  # (B,) fp32, full vocabulary at the temperature
    sampler_logps: torch.Tensor  # (B,) fp32, of the distribution drawn from


def draw(
    logits: torch.Tensor,
    seen: torch.Tensor | None,
    uniforms: torch.Tensor,
    params: SamplingParams,
) -> Draw:
    """Sample from the filtered distribution.

    Args:
        logits: (B, V) any float dtype, raw.
        seen: (B, V) bool, tokens already in prompt or completion; None without a penalty.
        uniforms: (B,) fp64 in [0, 1).
        params: the sampling distribution.
    """
    raw = logits.float() / params.temperature  # (B, V)
    lse = raw.logsumexp(-1)  # (B,)
    scores = raw
    if seen is not None and params.repetition_penalty != 1.0:
        penalised = torch.where(
            raw > 0, raw / params.repetition_penalty, raw * params.repetition_penalty
        )
        scores = torch.where(seen, penalised, raw)
    k = min(params.top_k, scores.shape[-1]) if params.top_k > 0 else scores.shape[-1]
    top, index = scores.topk(k, dim=-1, sorted=True)  # (B, K)
    probs = top.double().softmax(-1)
    before = probs.cumsum(-1) - probs
    # top-p keeps the smallest set whose mass reaches p: a token stays while the mass before it
    # is below p, so the most likely token always stays.
    probs = probs.masked_fill(before >= params.top_p, 0.0)
    cdf = probs.cumsum(-1)
    pick = torch.searchsorted(cdf, (uniforms * cdf[:, -1])[:, None], right=True)  # (B, 1)
    # Rounding may push a draw past the last kept candidate.
    last = (probs > 0).sum(-1, keepdim=True) - 1
    pick = torch.minimum(pick, last)
    tokens = index.gather(-1, pick)[:, 0]
    kept = probs.gather(-1, pick)[:, 0] / cdf[:, -1]
    return Draw(
        tokens=tokens,
        rollout_logps=raw.gather(-1, tokens[:, None])[:, 0] - lse,
        sampler_logps=kept.log().float(),
    )
