"""Policy losses with their derivatives, from per-token log-probs: no autograd, no [N, V].

Each entry of `POLICY_LOSSES` maps (spec, inputs) to `PolicyTerms`: the per-token loss and how it
depends on the log importance weight and on the log-prob itself. The equations, with the papers, are
in `reference.policy_loss`, which shares no code with this file.

Shapes: `K tokens . R rows`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .rows import TokenView
from .selection import covariance, largest, spread_over_band
from .spec import LossSpec

# floor of 1 - p: a log-prob that rounds to 0 has no finite log(1 - p)
_SMALLEST_REST = 1e-8


@dataclass(frozen=True)
class PolicyInputs:
    """What a policy loss may look at."""

    logps: Tensor
    """(K,) log-probs of this forward"""
    log_ratio: Tensor
    """(K,) logps - old_logps, exactly 0 when old_logps is None"""
    log_weight: Tensor
    """(K,) log of the importance weight: log_ratio itself, or its mean over the row"""
    is_weight: Tensor | None
    """(K,) correction for the rollout engine"""
    view: TokenView


@dataclass(frozen=True)
class PolicyTerms:
    """A policy loss and its derivatives; None stands for zero (`gate`: for one)."""

    loss: Tensor
    """(K,) per-token loss, before weight and correction"""
    d_log_weight: Tensor | None = None
    """(K,) d loss / d log_weight"""
    d_logps: Tensor | None = None
    """(K,) d loss / d logps at fixed log_weight"""
    gate: Tensor | None = None
    """(K,) d log_weight's own summand / d logps: 0 where a token is clipped inside the mean"""
    clipped_low: Tensor | None = None
    """(K,) bool: ratio (or divergence) under the range and advantage negative"""
    clipped_high: Tensor | None = None
    """(K,) bool: ratio (or divergence) over the range and advantage positive"""
    selected: Tensor | None = None
    """(K,) bool: tokens that a covariance loss has singled out"""
    corrected: bool = False
    """True when the loss has used `is_weight` itself, so that it is not applied again"""


PolicyLoss = Callable[[LossSpec, PolicyInputs], PolicyTerms]


def clipped_ratio(spec: LossSpec, x: PolicyInputs) -> PolicyTerms:
    """-min(min(r, delta) A, clip(r, 1 - eps, 1 + eps_high) A): grpo, dapo, gspo and kin."""
    low, high = 1.0 - spec.epsilon, 1.0 + spec.upper_epsilon
    A = x.view.advantages
    r = x.log_weight.exp()
    clipped = r.clamp(low, high) * A
    product = _product(r, A)
    if spec.delta is None:
        free = product
        stopped = free > clipped
    else:
        free = r.clamp(max=spec.delta) * A
        stopped = (free > clipped) | (r > spec.delta)
    return PolicyTerms(
        loss=-torch.minimum(free, clipped),
        # not a product with 0: the ratio may have overflowed
        d_log_weight=-product.masked_fill(stopped, 0.0),
        clipped_low=(r < low) & (A < 0),
        clipped_high=(r > high) & (A > 0),
    )


def cispo(spec: LossSpec, x: PolicyInputs) -> PolicyTerms:
    """-sg[clip(r, floor, cap)] A l: every token keeps a gradient, only its weight is clipped."""
    A = x.view.advantages
    r = x.log_weight.exp()
    d_logps = -r.clamp(spec.ratio_floor, spec.upper_epsilon) * A
    return PolicyTerms(
        loss=d_logps * x.logps,
        d_logps=d_logps,
        clipped_high=(r > spec.upper_epsilon) & (A > 0),
    )


def sapo(spec: LossSpec, x: PolicyInputs) -> PolicyTerms:
    """-4 / tau sigmoid(tau (r - 1)) A, with tau by the sign of the advantage."""
    A = x.view.advantages
    r = x.log_weight.exp()
    tau = _choose(A, A > 0, spec.sapo_temperature_pos, spec.sapo_temperature_neg)
    gate = torch.sigmoid(tau * (r - 1))
    return PolicyTerms(
        loss=-4 / tau * gate * A,
        # far out the gate is flat, and a ratio that overflows there has no product with 0
        d_log_weight=(-4 * gate * (1 - gate) * r * A).masked_fill(gate == 1, 0.0),
    )


def gmpo(spec: LossSpec, x: PolicyInputs) -> PolicyTerms:
    """-A exp(row mean of log-ratios, each clipped in log space against its advantage)."""
    A = x.view.advantages
    limited = x.log_ratio.clamp(-spec.epsilon, spec.upper_epsilon)
    positive = A > 0
    used = torch.where(
        positive, torch.minimum(x.log_ratio, limited), torch.maximum(x.log_ratio, limited)
    )
    loss = -_product(x.view.row_mean(used).exp()[x.view.row], A)
    clipped_low = (x.log_ratio < -spec.epsilon) & (A < 0)
    clipped_high = (x.log_ratio > spec.upper_epsilon) & positive
    # an advantage of 0 clips from below too, but has no gradient to stop
    return PolicyTerms(
        loss=loss,
        d_log_weight=loss,
        gate=(used == x.log_ratio).to(loss.dtype),
        clipped_low=clipped_low,
        clipped_high=clipped_high,
    )


def vespo(spec: LossSpec, x: PolicyInputs) -> PolicyTerms:
    """-sg[phi(w)] A l with phi(w) = exp(lambda) w^k exp(-lambda w), w the row's whole ratio."""
    A = x.view.advantages
    smallest = math.log(1e-8)
    log_w = x.log_ratio.clamp(-20.0, 20.0)
    if x.is_weight is not None:
        log_w = log_w + x.is_weight.log().clamp(smallest, 20.0)
    log_w = x.view.row_sum(log_w).clamp(smallest, 20.0)[x.view.row]
    positive = A >= 0
    k = _choose(A, positive, spec.vespo_k_pos, spec.vespo_k_neg)
    rate = _choose(A, positive, spec.vespo_lambda_pos, spec.vespo_lambda_neg)
    phi = (rate + k * log_w - rate * log_w.exp()).exp()
    return PolicyTerms(loss=-phi * A * x.logps, d_logps=-phi * A, corrected=True)


def dppo_tv(spec: LossSpec, x: PolicyInputs) -> PolicyTerms:
    """-sg[M min(r, cap)] A l with the total variation |p - p_old| of "this token or not"."""
    return _divergence_masked(spec, x, (x.logps.exp() - (x.logps - x.log_ratio).exp()).abs())


def dppo_kl(spec: LossSpec, x: PolicyInputs) -> PolicyTerms:
    """-sg[M min(r, cap)] A l with KL(p_old || p) of "this token or not"."""
    old = x.logps - x.log_ratio
    # expm1: 1 - exp(l) has no digits left for a log-prob near 0
    rest, old_rest = (-torch.expm1(l).clamp(max=-_SMALLEST_REST) for l in (x.logps, old))
    return _divergence_masked(spec, x, (old_rest / rest).log() * old_rest - x.log_ratio * old.exp())


def _divergence_masked(spec: LossSpec, x: PolicyInputs, divergence: Tensor) -> PolicyTerms:
    A = x.view.advantages
    too_high = (divergence > spec.upper_epsilon) & (x.log_ratio > 0) & (A > 0)
    too_low = (divergence > spec.epsilon) & (x.log_ratio < 0) & (A < 0)
    weight = x.log_ratio.exp().clamp(max=spec.ratio_cap).masked_fill(too_high | too_low, 0.0)
    d_logps = -_product(weight, A)
    return PolicyTerms(
        loss=d_logps * x.logps, d_logps=d_logps, clipped_low=too_low, clipped_high=too_high
    )


def clip_cov(spec: LossSpec, x: PolicyInputs) -> PolicyTerms:
    """The clipped loss, and nothing on a share of the unclipped tokens in a covariance band."""
    terms = clipped_ratio(spec, x)
    assert terms.clipped_low is not None and terms.clipped_high is not None
    assert terms.d_log_weight is not None
    dropped = spread_over_band(
        covariance(x.logps, x.view),
        x.view,
        share=spec.clip_cov_ratio,
        low=spec.clip_cov_lb,
        high=spec.clip_cov_ub,
        barred=terms.clipped_low | terms.clipped_high,
    )
    return replace(
        terms,
        loss=terms.loss.masked_fill(dropped, 0.0),
        d_log_weight=terms.d_log_weight.masked_fill(dropped, 0.0),
        selected=dropped,
    )


def kl_cov(spec: LossSpec, x: PolicyInputs) -> PolicyTerms:
    """-r A, and + coef |log r| on the share of tokens with the largest covariance."""
    chosen = largest(covariance(x.logps, x.view), x.view, share=spec.kl_cov_ratio)
    free = -_product(x.log_weight.exp(), x.view.advantages)
    # a number times a mask would be float32, whatever the dtype around it
    penalty = spec.kl_cov_coef * chosen.to(free.dtype)
    return PolicyTerms(
        loss=free + penalty * x.log_weight.abs(),
        d_log_weight=free + penalty * x.log_weight.sign(),
        selected=chosen,
    )


def dro(spec: LossSpec, x: PolicyInputs) -> PolicyTerms:
    """-A l + beta / 2 log(r)^2: no clip, but a spring to the old policy on every token."""
    A = x.view.advantages
    return PolicyTerms(
        loss=0.5 * spec.dro_beta * x.log_ratio.square() - A * x.logps,
        d_logps=spec.dro_beta * x.log_ratio - A,
    )


def reinforce(spec: LossSpec, x: PolicyInputs) -> PolicyTerms:
    """-A l."""
    A = x.view.advantages
    return PolicyTerms(loss=-A * x.logps, d_logps=-A)


def luffy(spec: LossSpec, x: PolicyInputs) -> PolicyTerms:
    """-A p / (p + gamma): the policy shaping of rows that the policy did not sample."""
    A = x.view.advantages
    p = x.logps.exp()
    loss = -A * p / (p + spec.luffy_gamma)
    return PolicyTerms(loss=loss, d_logps=loss * spec.luffy_gamma / (p + spec.luffy_gamma))


POLICY_LOSSES: dict[str, PolicyLoss] = {
    "grpo": clipped_ratio,
    "bnpo": clipped_ratio,
    "dr_grpo": clipped_ratio,
    "dapo": clipped_ratio,
    "gspo": clipped_ratio,
    "luspo": clipped_ratio,
    "cispo": cispo,
    "sapo": sapo,
    "gmpo": gmpo,
    "vespo": vespo,
    "dppo_tv": dppo_tv,
    "dppo_kl": dppo_kl,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
    "dro": dro,
    "reinforce": reinforce,
}


def _product(ratio: Tensor, A: Tensor) -> Tensor:
    """ratio A, and 0 where A is, whatever the ratio."""
    return (ratio * A).masked_fill(A == 0, 0.0)


def _choose(like: Tensor, condition: Tensor, yes: float, no: float) -> Tensor:
    # torch.where on two numbers would give float32, whatever the dtype around it
    return torch.full_like(like, no).masked_fill_(condition, yes)


def kl_terms(estimator: str, log_ratio_ref: Tensor) -> tuple[Tensor, Tensor]:
    """A KL estimate and its derivative by logps, from log_ratio_ref = logps - ref_logps (K,).

    A `+` keeps the value and takes the gradient of k2, which is the exact KL's on average.
    """
    name = estimator.removesuffix("+")
    if name == "k1":
        value, slope = log_ratio_ref, torch.ones_like(log_ratio_ref)
    elif name == "abs":
        value, slope = log_ratio_ref.abs(), log_ratio_ref.sign()
    elif name == "k2":
        value, slope = 0.5 * log_ratio_ref.square(), log_ratio_ref
    else:
        # expm1 keeps the value exact near 0, where exp(-d) + d - 1 cancels
        change = torch.expm1(-log_ratio_ref)
        value, slope = change + log_ratio_ref, -change
    return value, (log_ratio_ref if estimator.endswith("+") else slope)
