"""From log-probs to the loss and its coefficients: policy term + corrections + KL + entropy.

An objective is what the head's backend calls in the middle of its forward: log-probs and entropies
of some tokens in, d loss / d log-prob and d loss / d entropy out.

Shapes: `K tokens . R rows . C chunk of tokens`.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .losses import POLICY_LOSSES, PolicyInputs, PolicyTerms, kl_terms, luffy
from .metrics import TokenColumns, collect_metrics
from .rows import LossFn, TokenView
from .selection import high_entropy
from .spec import LossSpec


@dataclass(frozen=True)
class TokenGradients:
    """d loss / d (log-prob, entropy, lse) of some tokens; None stands for zero."""

    logp: Tensor | None
    """(C,)"""
    entropy: Tensor | None = None
    """(C,)"""
    lse: Tensor | None = None
    """(C,)"""


class Objective(Protocol):
    """A scalar loss over K tokens, evaluated chunk by chunk."""

    needs_whole_rows: bool
    """True: `gradients` must get all K tokens at once (a statistics pass comes first)."""
    uses_entropy_gradient: bool

    def gradients(self, tokens: slice, logps: Tensor, entropy: Tensor) -> TokenGradients:
        """Coefficients of the tokens in `tokens`, from their (C,) log-probs and entropies."""

    def finish(self, logps: Tensor, entropy: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (scalar) and the metrics, from all K log-probs and entropies."""


@dataclass(frozen=True)
class _Evaluation:
    gradients: TokenGradients
    loss: Tensor
    columns: TokenColumns


class SpecObjective:
    """The built-in losses of a `LossSpec`."""

    def __init__(self, spec: LossSpec, view: TokenView) -> None:
        self.spec = spec
        self.view = view
        self.needs_whole_rows = _needs_whole_rows(spec, view)
        self.uses_entropy_gradient = spec.entropy_coef != 0.0
        self._whole: _Evaluation | None = None
        self.is_weight: Tensor | None = None
        if view.old_logps is not None:
            self.is_weight = is_weights(spec, view, view.old_logps)

    def gradients(self, tokens: slice, logps: Tensor, entropy: Tensor) -> TokenGradients:
        is_whole = logps.shape == self.view.row.shape
        tokens = slice(None) if is_whole else tokens
        evaluation = self._evaluate(tokens, *_harmless(self.view[tokens], logps, entropy))
        if is_whole:
            self._whole = evaluation
        return evaluation.gradients

    def finish(self, logps: Tensor, entropy: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        # a pass over (K,) vectors costs nothing beside the head, and makes loss and metrics
        # independent of the chunk size
        logps, entropy = _harmless(self.view, logps, entropy)
        whole = self._whole or self._evaluate(slice(None), logps, entropy)
        loss = whole.loss * self.view.weight
        return loss.sum(), collect_metrics(self.view, logps, entropy, loss, whole.columns)

    def _evaluate(self, tokens: slice, logps: Tensor, entropy: Tensor) -> _Evaluation:
        spec, view = self.spec, self.view[tokens]
        old = view.old_logps
        log_ratio = torch.zeros_like(logps) if old is None else logps - old
        log_weight = log_ratio
        if spec.uses_sequence_ratio and old is not None:
            log_weight = view.row_mean(log_ratio)[view.row]
        if old is None:
            is_weight = is_weights(spec, view, logps)
        else:
            is_weight = None if self.is_weight is None else self.is_weight[tokens]
        inputs = PolicyInputs(logps, log_ratio, log_weight, is_weight, view)
        terms = POLICY_LOSSES[spec.loss_type](spec, inputs)
        if spec.human_ratio == "luffy" and view.is_human is not None:
            terms = _shape_human_rows(terms, luffy(spec, inputs), view.is_human)
        loss, d_logps, d_log_weight = terms.loss, terms.d_logps, terms.d_log_weight
        heard = None
        if spec.top_entropy_quantile < 1.0:
            heard = high_entropy(entropy, view, spec.top_entropy_quantile).to(logps.dtype)
        scale = _policy_scale(spec, inputs, terms, heard)
        if scale is not None:
            loss = loss * scale
            d_logps, d_log_weight = _times(d_logps, scale), _times(d_log_weight, scale)
        kl = None
        if view.ref_logps is not None:
            kl, d_kl = kl_terms(spec.kl_estimator, logps - view.ref_logps)
            if spec.kl_importance_correction:
                ratio = log_weight.exp()
                kl, d_kl = kl * ratio, d_kl * ratio
                if spec.beta:
                    d_log_weight = _plus(d_log_weight, spec.beta * kl)
            if spec.beta:
                loss = loss + spec.beta * kl
                d_logps = _plus(d_logps, spec.beta * d_kl)
        d_entropy = None
        if spec.entropy_coef:
            bonus = torch.full_like(loss, spec.entropy_coef)
            bonus = bonus if heard is None else bonus * heard
            loss, d_entropy = loss - bonus * entropy, -bonus * view.weight
        columns = TokenColumns(
            log_weight=log_weight,
            kl=kl,
            is_weight=is_weight,
            clipped_low=terms.clipped_low,
            clipped_high=terms.clipped_high,
            selected=terms.selected,
            high_entropy=heard,
        )
        gradients = TokenGradients(
            logp=self._pull_back(view, terms.gate, d_logps, d_log_weight), entropy=d_entropy
        )
        return _Evaluation(gradients, loss, columns)

    def _pull_back(
        self, view: TokenView, gate: Tensor | None, d_logps: Tensor | None, d_weight: Tensor | None
    ) -> Tensor:
        """d loss / d logp from the direct part and, through the importance weight, the rest."""
        total = None if d_logps is None else d_logps * view.weight
        if d_weight is not None:
            through = d_weight * view.weight
            # without `needs_whole_rows` every token of a row has the same value: its own mean
            if self.spec.shares_ratio_gradient and self.needs_whole_rows:
                through = view.row_mean(through)[view.row]
            if gate is not None:
                through = through * gate
            total = _plus(total, through)
        assert total is not None
        return total


class CallbackObjective:
    """A user's per-token loss, differentiated by autograd on (C,) vectors."""

    def __init__(self, loss_fn: LossFn, view: TokenView, *, whole_rows: bool) -> None:
        self.loss_fn = loss_fn
        self.view = view
        self.needs_whole_rows = whole_rows
        # what the callback uses is known only once it has run
        self.uses_entropy_gradient = True
        self._loss = torch.zeros_like(view.weight)
        self._seen = False

    def gradients(self, tokens: slice, logps: Tensor, entropy: Tensor) -> TokenGradients:
        view = self.view[tokens]
        logps, entropy = _harmless(view, logps, entropy)
        with torch.enable_grad():
            leaves = (logps.detach().requires_grad_(), entropy.detach().requires_grad_())
            loss = self._call(*leaves, view)
            weighted = (view.with_loss(loss) * view.weight).sum()
            g_logp, g_entropy = (
                torch.autograd.grad(weighted, leaves, allow_unused=True)
                if weighted.requires_grad
                else (None, None)
            )
        # an infinite slope times the 0 that comes back to it is nan
        g_logp, g_entropy = (None if g is None else view.with_loss(g) for g in (g_logp, g_entropy))
        self._loss[tokens] = view.with_loss(loss.detach())
        self._seen = True
        return TokenGradients(logp=g_logp, entropy=g_entropy)

    def finish(self, logps: Tensor, entropy: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logps, entropy = _harmless(self.view, logps, entropy)
        if not self._seen and logps.numel():
            self._loss = self.view.with_loss(self._call(logps, entropy, self.view).detach())
        loss = self._loss * self.view.weight
        return loss.sum(), collect_metrics(self.view, logps, entropy, loss, TokenColumns())

    def _call(self, logps: Tensor, entropy: Tensor, view: TokenView) -> Tensor:
        loss = self.loss_fn(logps, entropy, view)
        if not isinstance(loss, Tensor) or loss.shape != logps.shape:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"linear_grpo_loss: loss_fn must return per-token losses of shape "
                f"{tuple(logps.shape)}, got {got}; do not reduce over tokens"
            )
        return loss


def _harmless(view: TokenView, logps: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies, 0 where a token carries no loss.

    The head has read some id there, which may be a banned one: no formula gets to see its -inf.
    """
    return view.with_loss(logps), view.with_loss(entropy)


def is_weights(spec: LossSpec, view: TokenView, old_logps: Tensor) -> Tensor | None:
    """(K,) truncated or masked pi_old / pi_rollout; None without correction or rollout_logps.

    Human rows and tokens whose rollout log-prob is nan get exactly 1 (nan counts as 0 in a mean).
    """
    if spec.is_correction == "none" or view.rollout_logps is None:
        return None
    level, _, action = spec.is_correction.partition("_")
    difference = (old_logps - view.rollout_logps).nan_to_num(nan=0.0)
    if level != "token":
        total = view.row_sum if level == "sequence" else view.row_mean
        difference = total(difference)[view.row]
    weight = difference.exp()
    low = 0.0 if spec.is_floor is None else spec.is_floor
    high = math.inf if spec.is_cap is None else spec.is_cap
    if action == "truncate":
        weight = weight.clamp(low, high)
    else:
        # a product over a long row may be inf, which no factor makes 0
        weight = weight.masked_fill((weight < low) | (weight > high), 0.0)
    return weight if view.is_human is None else weight.masked_fill(view.is_human, 1.0)


def _policy_scale(
    spec: LossSpec, x: PolicyInputs, terms: PolicyTerms, heard: Tensor | None
) -> Tensor | None:
    """What multiplies the policy term (not the KL): importance correction, dropped rows, tokens."""
    scale = None if terms.corrected else x.is_weight
    if heard is not None:
        scale = heard if scale is None else scale * heard
    if spec.off_policy_mask_threshold is None:
        return scale
    behaviour = x.view.rollout_logps
    if behaviour is None:
        behaviour = x.logps - x.log_ratio
    drift = (behaviour - x.logps).nan_to_num(nan=0.0)
    if x.view.is_human is not None:
        drift = drift.masked_fill(x.view.is_human, 0.0)
    stale = x.view.row_mean(drift)[x.view.row] > spec.off_policy_mask_threshold
    kept = ~(stale & (x.view.advantages < 0))
    return kept.to(x.logps.dtype) if scale is None else scale * kept


def _shape_human_rows(policy: PolicyTerms, shaped: PolicyTerms, human: Tensor) -> PolicyTerms:
    """`shaped` on human rows, `policy` on the others, and no clipping on human rows."""

    def zero_for_human(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.masked_fill(human, 0)

    direct = policy.d_logps
    assert shaped.d_logps is not None
    return PolicyTerms(
        loss=torch.where(human, shaped.loss, policy.loss),
        d_log_weight=zero_for_human(policy.d_log_weight),
        d_logps=torch.where(human, shaped.d_logps, 0.0 if direct is None else direct),
        gate=policy.gate,
        clipped_low=zero_for_human(policy.clipped_low),
        clipped_high=zero_for_human(policy.clipped_high),
        selected=policy.selected,
        corrected=policy.corrected,
    )


def _needs_whole_rows(spec: LossSpec, view: TokenView) -> bool:
    """True when a token's coefficient depends on other tokens' results of this forward."""
    moved = view.old_logps is not None
    corrects = spec.is_correction != "none" and view.rollout_logps is not None
    per_token = spec.is_correction.startswith("token")
    selects = spec.top_entropy_quantile < 1.0
    if selects and view.entropy_threshold is None:
        return True
    # at ratio 1 the penalty of kl_cov has no slope
    if spec.loss_type == "clip_cov" or (spec.loss_type == "kl_cov" and moved):
        return True
    if corrects and not moved and not per_token:
        return True
    if spec.off_policy_mask_threshold is not None and (moved or view.rollout_logps is not None):
        return True
    if spec.loss_type == "vespo":
        return moved or corrects
    if not spec.shares_ratio_gradient:
        return moved and spec.uses_sequence_ratio
    uniform = view.advantages_per_row and not (corrects and per_token) and not selects
    bends = spec.kl_importance_correction and spec.beta != 0.0
    return moved or bends or not uniform


def _times(value: Tensor | None, scale: Tensor) -> Tensor | None:
    return None if value is None else value * scale


def _plus(value: Tensor | None, other: Tensor) -> Tensor:
    return other if value is None else value + other
