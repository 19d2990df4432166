"""The oracle of `selection`: which tokens a quantile of entropy or a covariance singles out.

Lists of numbers, one token at a time; it shares no code with the fused path.

Shapes: `T packed tokens`; `sampled` are the positions with loss in rows that are not human.
"""

import math
from statistics import mean

import torch
from torch import Tensor

from .rows import LossRows
from .spec import LossSpec


def sampled_tokens(rows: LossRows, row_tokens: dict[int, Tensor]) -> list[int]:
    """Positions of the tokens that statistics run over: with loss, and not of a human row."""
    human = [False] * rows.num_rows if rows.is_human is None else rows.is_human.tolist()
    return [t for r, tokens in row_tokens.items() if not human[r] for t in tokens.tolist()]


def high_entropy(entropy: Tensor, rows: LossRows, spec: LossSpec, sampled: list[int]) -> Tensor:
    """(T,) bool: tokens that keep their policy loss under `top_entropy_quantile`."""
    kept = torch.ones_like(entropy, dtype=torch.bool)
    if spec.top_entropy_quantile == 1.0 or not sampled:
        return kept
    threshold = rows.entropy_threshold
    if threshold is None:
        ranked = sorted(entropy[sampled].tolist())
        # the quantile, rounded up to an entropy that occurs
        threshold = ranked[math.ceil(round((1 - spec.top_entropy_quantile) * (len(ranked) - 1), 6))]
    kept[sampled] = entropy[sampled] >= threshold
    return kept


def covariances(logps: list[float], advantages: list[float]) -> list[float]:
    """Each token's part in the covariance of log-prob and advantage (arXiv 2505.22617)."""
    if not logps:
        return []
    # `statistics.mean` is exact: equal advantages have covariance 0, not its rounding error
    mean_logp, mean_advantage = mean(logps), mean(advantages)
    return [(l - mean_logp) * (A - mean_advantage) for l, A in zip(logps, advantages, strict=True)]


def covariance_tokens(logps: Tensor, rows: LossRows, spec: LossSpec, sampled: list[int]) -> Tensor:
    """(T,) bool: tokens that `clip_cov` takes out, or that `kl_cov` penalises."""
    chosen = torch.zeros_like(logps, dtype=torch.bool)
    if spec.loss_type not in ("clip_cov", "kl_cov") or not sampled:
        return chosen
    per_row = rows.advantages.shape[0] == rows.num_rows
    A = rows.advantages[rows.row_of_token] if per_row else rows.advantages
    parts = covariances(logps[sampled].tolist(), A[sampled].tolist())
    ranked = sorted(zip(parts, sampled, strict=True))
    if spec.loss_type == "kl_cov":
        count = max(1, int(spec.kl_cov_ratio * len(sampled)))
        chosen[[t for _, t in ranked[-count:]]] = True
        return chosen
    old = logps if rows.old_logps is None else rows.old_logps.to(logps.dtype)
    ratio = (logps - old).exp()
    upper = spec.epsilon if spec.epsilon_high is None else spec.epsilon_high
    clipped = ratio.clamp(1 - spec.epsilon, 1 + upper) * A < ratio * A
    band = [t for c, t in ranked if spec.clip_cov_lb < c < spec.clip_cov_ub and not clipped[t]]
    count = min(max(1, int(spec.clip_cov_ratio * len(sampled))), len(band))
    # the middle of each of `count` equal parts of the band
    chosen[[band[(2 * j + 1) * len(band) // (2 * count)] for j in range(count)]] = True
    return chosen
