"""Drawing one token a row: penalty, temperature, top-k, top-p, inverse CDF.

B rows · V vocabulary · K candidates · W entries of a block. A row uses one uniform number a token,
so its text depends on its own stream alone: rows may leave or join the batch without changing their
neighbours. With top-k or top-p the candidates stand in order of their probability, and only they
are looked at; without, nothing is sorted: the vocabulary stands in its own order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import SamplingParams

# Rows are taken so many numbers at a time: what is made of them stays in the cache, and malloc
# gives the same pages again (fresh ones cost as much as the exponentials).
_NUMBERS_AT_ONCE = 2**20
_BLOCK = 512


@dataclass(frozen=True)
class Draw:
    """One sampled token a row."""

    tokens: torch.Tensor  # (B,) int64
    rollout_logps: torch.Tensor  # (B,) fp32, full vocabulary at the temperature
    sampler_logps: torch.Tensor  # (B,) fp32, of the distribution drawn from


@torch.no_grad()
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
    size = len(logits) if logits.is_cuda else max(1, _NUMBERS_AT_ONCE // logits.shape[-1])
    if params.repetition_penalty == 1.0:
        seen = None
    parts = [
        _draw(
            logits[start : start + size],
            None if seen is None else seen[start : start + size],
            uniforms[start : start + size],
            params,
        )
        for start in range(0, len(logits), size)
    ]
    if len(parts) == 1:
        return parts[0]
    return Draw(
        tokens=torch.cat([part.tokens for part in parts]),
        rollout_logps=torch.cat([part.rollout_logps for part in parts]),
        sampler_logps=torch.cat([part.sampler_logps for part in parts]),
    )


def _draw(
    logits: torch.Tensor,
    seen: torch.Tensor | None,
    uniforms: torch.Tensor,
    params: SamplingParams,
) -> Draw:
    raw = logits.float()  # (B, V)
    if params.temperature != 1.0:
        raw = raw / params.temperature
    full = _Weights(raw)
    filtered = params.top_p < 1 or 0 < params.top_k < raw.shape[-1]
    scores = raw if seen is None else _penalised(raw, seen, params.repetition_penalty)
    if filtered:
        tokens, sampler_logps = _from_candidates(scores, uniforms, params)
    else:
        weights = full if seen is None else _Weights(scores)
        tokens = weights.tokens_at(uniforms)
        sampler_logps = weights.logps(scores, tokens)
    return Draw(tokens, full.logps(raw, tokens), sampler_logps)


class _Weights:
    """exp(scores - max) of whole rows, and its sums over blocks of the vocabulary."""

    def __init__(self, scores: torch.Tensor) -> None:
        """scores: (B, V) fp32"""
        self.largest = scores.amax(-1, keepdim=True)  # (B, 1)
        self.weights = (scores - self.largest).exp_()  # (B, V)
        whole = scores.shape[-1] // _BLOCK * _BLOCK
        sums = self.weights[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1)
        rest = self.weights[:, whole:].sum(-1, keepdim=True)
        self.sums = torch.cat((sums, rest), dim=-1).double()  # (B, blocks)
        self.edges = self.sums.cumsum(-1)

    def logps(self, scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(B,) fp32 log-softmax of tokens (B,)."""
        lse = self.largest.double() + self.edges[:, -1:].log()
        return (scores.gather(-1, tokens[:, None]) - lse)[:, 0].float()

    def tokens_at(self, uniforms: torch.Tensor) -> torch.Tensor:
        """(B,) the tokens at which the CDF passes uniforms (B,): first the block, then inside."""
        aim = uniforms[:, None] * self.edges[:, -1:]
        block = _first_beyond(self.edges, aim, self.sums)  # (B, 1)
        mass = self.sums.gather(-1, block)
        share = (aim - (self.edges.gather(-1, block) - mass)) / mass  # of the block that is passed
        index = block * _BLOCK + torch.arange(_BLOCK, device=block.device)  # (B, W)
        last = self.weights.shape[-1] - 1
        inside = self.weights.gather(-1, index.clamp(max=last)).double()
        inside = inside.masked_fill(index > last, 0.0)
        cdf = inside.cumsum(-1)
        place = _first_beyond(cdf, share * cdf[:, -1:], inside)
        return index.gather(-1, place)[:, 0]


def _first_beyond(cdf: torch.Tensor, aim: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """(B, 1) the first place where cdf (B, n) exceeds aim (B, 1), of those that have a mass."""
    place = torch.searchsorted(cdf, aim, right=True)
    # Rounding may push an aim past the last one.
    last = mass.shape[-1] - 1 - (mass > 0).flip(-1).byte().argmax(-1, keepdim=True)
    return torch.minimum(place, last)


def _penalised(scores: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Scores (B, V) of seen tokens divided by the penalty, or multiplied where negative."""
    return torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


def _from_candidates(
    scores: torch.Tensor, uniforms: torch.Tensor, params: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B,) from the top-k and top-p of scores (B, V), and their log-probs there (B,)."""
    k = min(params.top_k, scores.shape[-1]) if params.top_k > 0 else scores.shape[-1]
    top, index = scores.topk(k, dim=-1, sorted=True)  # (B, K)
    probs = top.double().softmax(-1)
    before = probs.cumsum(-1) - probs
    # top-p keeps the smallest set whose mass reaches p: a token stays while the mass before it
    # is below p, so the most likely token always stays.
    probs = probs.masked_fill(before >= params.top_p, 0.0)
    cdf = probs.cumsum(-1)
    pick = _first_beyond(cdf, uniforms[:, None] * cdf[:, -1:], probs)
    kept = probs.gather(-1, pick)[:, 0] / cdf[:, -1]
    return index.gather(-1, pick)[:, 0], kept.log().float()
