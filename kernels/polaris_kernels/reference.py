"""The oracle: every equation of the package in plain torch, for any float dtype, by autograd.

It shares no code with the fused path and is written to be read, not to be run at scale: the full
(N, V) logits exist here. Tests hold every backend to it in float64.

Shapes: `N tokens . D hidden . V vocab . R rows . G groups`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .reference_selection import covariance_tokens, high_entropy, sampled_tokens
from .rows import LossRows
from .spec import LossSpec


@dataclass(frozen=True)
class ReferenceLogps:
    """(N,) each, differentiable."""

    logps: Tensor
    entropy: Tensor
    lse: Tensor


def logits(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """(N, V) scaled logits: softcap tanh(logit_scale (x W^T + b) / softcap) / temperature.

    Softcap: Gemma 2, arXiv 2408.00118.
    """
    z = F.linear(hidden, weight, bias) * logit_scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    return z / (temperature.unsqueeze(-1) if isinstance(temperature, Tensor) else temperature)


def token_logps(z: Tensor, targets: Tensor) -> ReferenceLogps:
    """log p_y, H = -sum p log p and logsumexp of (N, V) logits."""
    log_p = torch.log_softmax(z, dim=-1)
    return ReferenceLogps(
        logps=log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1),
        entropy=-(log_p.exp() * log_p).sum(-1),
        lse=torch.logsumexp(z, dim=-1),
    )


def kl_estimate(estimator: str, logps: Tensor, ref_logps: Tensor) -> Tensor:
    """KL(pi || ref) per token from samples of pi: k1, k2, k3 of Schulman, "Approximating KL
    Divergence" (2020), and |k1|.

    `name+` has the value of `name` and the gradient of k2, whose expectation is the gradient of the
    exact KL.
    """
    d = logps - ref_logps
    values = {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) - 1 + d, "abs": d.abs()}
    if estimator.endswith("+"):
        return values[estimator[:-1]].detach() + values["k2"] - values["k2"].detach()
    return values[estimator]


def exact_kl(z: Tensor, ref_z: Tensor) -> Tensor:
    """KL(pi || ref) = sum_j p_j (log p_j - log q_j) of (N, V) logits of policy and reference."""
    log_p, log_q = torch.log_softmax(z, dim=-1), torch.log_softmax(ref_z, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def policy_loss(logps: Tensor, entropy: Tensor, rows: LossRows, spec: LossSpec) -> Tensor:
    """The scalar loss of `spec`, from (T,) log-probs and entropies; masked tokens may be anything.

    GRPO arXiv 2402.03300; DAPO (asymmetric clip, token mean) 2503.14476; Dr. GRPO 2503.20783; GSPO
    (row ratio) 2507.18071; CISPO 2506.13585; SAPO 2511.20347; GMPO 2507.20673; VESPO 2602.10693;
    LUSPO 2602.05261; dual clip 1912.09729; two-sided clip (INTELLECT-2) 2505.07291; off-policy
    sequence mask and KL with importance correction (DeepSeek-V3.2) 2512.02556; LUFFY 2504.14945;
    DPPO (binary divergences) 2602.04879; Clip-Cov and KL-Cov 2505.22617; DRO (per token, the
    advantage in place of its value function) 2405.19107; top-entropy tokens 2506.01939.
    """
    kept = torch.ones_like(rows.row_of_token, dtype=torch.bool)
    if rows.completion_mask is not None:
        kept = kept & (rows.completion_mask != 0)
    weights = logps.new_ones(rows.num_rows)
    if rows.row_weight is not None:
        weights = rows.row_weight.to(logps.dtype)
    alive = [r for r in range(rows.num_rows) if weights[r] != 0]
    row_tokens = {r: torch.nonzero(kept & (rows.row_of_token == r)).squeeze(1) for r in alive}
    row_tokens = {r: tokens for r, tokens in row_tokens.items() if len(tokens)}

    aggregation = spec.resolved_aggregation
    if rows.denominator is not None:
        denominator = float(rows.denominator)
    elif aggregation == "token_mean":
        denominator = float(max(1, sum(len(t) for t in row_tokens.values())))
    else:
        denominator = float(max(1, len(row_tokens)))

    sampled = sampled_tokens(rows, row_tokens)
    heard = high_entropy(entropy.detach(), rows, spec, sampled)
    chosen = covariance_tokens(logps.detach(), rows, spec, sampled)
    total = logps.new_zeros(())
    for r, tokens in row_tokens.items():
        loss = _row_loss(
            logps[tokens], entropy[tokens], rows, r, tokens, spec, heard[tokens], chosen[tokens]
        )
        if aggregation == "sequence_mean":
            loss = loss / len(tokens)
        elif aggregation == "sequence_sum" and spec.max_completion_length is not None:
            loss = loss / spec.max_completion_length
        total = total + weights[r] * loss.sum() / denominator
    return total


def _row_loss(
    logps: Tensor,
    entropy: Tensor,
    rows: LossRows,
    r: int,
    tokens: Tensor,
    spec: LossSpec,
    heard: Tensor,
    chosen: Tensor,
) -> Tensor:
    """(tokens of row r,) policy term times correction, plus KL, minus entropy bonus."""
    dtype = logps.dtype

    def of_row(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[tokens].to(dtype)

    if rows.advantages.shape[0] == rows.num_rows:
        A = rows.advantages[r].to(dtype).expand(len(tokens))
    else:
        A = rows.advantages[tokens].to(dtype)
    human = rows.is_human is not None and bool(rows.is_human[r])
    old = of_row(rows.old_logps)
    old = logps.detach() if old is None else old
    rollout = of_row(rows.rollout_logps)
    log_ratio = logps - old
    level = spec.ratio_level
    if level is None:
        level = "sequence" if spec.loss_type in ("gspo", "luspo") else "token"
    log_weight = log_ratio if level == "token" else log_ratio.mean().expand_as(log_ratio)
    if level == "sequence_token":
        log_weight = log_weight.detach() + log_ratio - log_ratio.detach()

    correction = torch.ones_like(logps)
    if spec.is_correction != "none" and rollout is not None and not human:
        correction = _importance(old.detach() - rollout, spec)
    if spec.human_ratio == "luffy" and human:
        p = logps.exp()
        policy = -A * p / (p + spec.luffy_gamma)
    else:
        policy = _policy_term(logps, log_ratio, log_weight, A, correction, spec, chosen)
    if spec.loss_type != "vespo":
        policy = policy * correction
    if spec.off_policy_mask_threshold is not None and not human:
        behaviour = old if rollout is None else rollout
        drift = (behaviour - logps).detach()
        drift = torch.where(drift.isnan(), 0.0, drift).mean()
        policy = policy * ~((A < 0) & (drift > spec.off_policy_mask_threshold))
    loss = (policy - spec.entropy_coef * entropy) * heard
    ref = of_row(rows.ref_logps)
    if spec.beta:
        assert ref is not None
        kl = kl_estimate(spec.kl_estimator, logps, ref)
        loss = loss + spec.beta * (kl * log_weight.exp() if spec.kl_importance_correction else kl)
    return loss


def _importance(log_ratio: Tensor, spec: LossSpec) -> Tensor:
    """Truncated (Ionides 2008) or masked pi_old / pi_rollout: the token's, the product over the
    row or its geometric mean."""
    log_ratio = torch.where(log_ratio.isnan(), 0.0, log_ratio)
    if spec.is_correction.startswith("sequence"):
        log_ratio = log_ratio.sum().expand_as(log_ratio)
    elif spec.is_correction.startswith("geometric"):
        log_ratio = log_ratio.mean().expand_as(log_ratio)
    weight = log_ratio.exp()
    low = spec.is_floor or 0.0
    high = math.inf if spec.is_cap is None else spec.is_cap
    if spec.is_correction.endswith("truncate"):
        return weight.clamp(low, high)
    return torch.where((weight < low) | (weight > high), 0.0, weight)


def _binary_divergence(logps: Tensor, old: Tensor, spec: LossSpec) -> Tensor:
    """Divergence of old and new policy on the two events "this token" and "any other"."""
    p, mu = logps.exp(), old.exp()
    if spec.loss_type == "dppo_tv":
        return (p - mu).abs()
    rest, old_rest = (1 - p).clamp(min=1e-8), (1 - mu).clamp(min=1e-8)
    return mu * (old - logps) + old_rest * (old_rest / rest).log()


def _policy_term(
    logps: Tensor,
    log_ratio: Tensor,
    log_weight: Tensor,
    A: Tensor,
    correction: Tensor,
    spec: LossSpec,
    chosen: Tensor,
) -> Tensor:
    def pick(condition: Tensor, yes: float, no: float) -> Tensor:
        # torch.where on two numbers would compute in float32
        return torch.where(condition, A.new_tensor(yes), A.new_tensor(no))

    ratio = log_weight.exp()
    upper = spec.epsilon if spec.epsilon_high is None else spec.epsilon_high
    if spec.loss_type == "reinforce":
        return -A * logps
    if spec.loss_type == "dro":
        return -A * logps + spec.dro_beta / 2 * log_ratio**2
    if spec.loss_type == "cispo":
        return -ratio.clamp(spec.ratio_floor, upper).detach() * A * logps
    if spec.loss_type == "sapo":
        tau = pick(A > 0, spec.sapo_temperature_pos, spec.sapo_temperature_neg)
        return -torch.sigmoid(tau * (ratio - 1)) * 4 / tau * A
    if spec.loss_type == "gmpo":
        clipped = log_ratio.clamp(-spec.epsilon, upper)
        pessimist = torch.where(
            A > 0, torch.minimum(log_ratio, clipped), torch.maximum(log_ratio, clipped)
        )
        return -A * pessimist.mean().exp()
    if spec.loss_type == "vespo":
        log_w = log_ratio.detach().clamp(-20, 20).sum()
        log_w = log_w + correction.log().clamp(min=-18.420680743952367, max=20).sum()
        w = log_w.clamp(-18.420680743952367, 20).exp()
        k = pick(A >= 0, spec.vespo_k_pos, spec.vespo_k_neg)
        rate = pick(A >= 0, spec.vespo_lambda_pos, spec.vespo_lambda_neg)
        return -torch.exp(rate) * w**k * torch.exp(-rate * w) * A * logps
    if spec.loss_type.startswith("dppo"):
        old = logps - log_ratio
        limit = pick(A > 0, upper, spec.epsilon)
        leaves = (_binary_divergence(logps, old, spec) > limit) & ((ratio > 1) == (A > 0))
        return -(ratio.clamp(max=spec.ratio_cap) * ~leaves).detach() * A * logps
    if spec.loss_type == "kl_cov":
        return -ratio * A + spec.kl_cov_coef * log_ratio.abs() * chosen
    free = ratio if spec.delta is None else ratio.clamp(max=spec.delta)
    clipped = -torch.minimum(free * A, ratio.clamp(1 - spec.epsilon, 1 + upper) * A)
    return torch.where(chosen, 0.0, clipped)


def group_advantages(
    rewards: list[float],
    group_ids: list[int],
    is_human: list[bool],
    *,
    eps: float = 1e-6,
    human_weight: float = 1.0,
) -> list[float]:
    """Z-scores from the policy rows of each group (unbiased std), human rows on the same scale.

    Every row is taken as scored; nan where a group has fewer than two policy rows.
    """
    advantages = []
    for reward, group, human in zip(rewards, group_ids, is_human, strict=True):
        peers = torch.tensor(
            [
                r
                for r, g, h in zip(rewards, group_ids, is_human, strict=True)
                if g == group and not h
            ],
            dtype=torch.float64,
            device="cpu",
        )
        if len(peers) < 2:
            advantages.append(float("nan"))
            continue
        scale = human_weight if human else 1.0
        advantages.append(scale * float((reward - peers.mean()) / (peers.std() + eps)))
    return advantages
