"""Losses whose coefficients are known, or follow from a row's own log-prob by a fixed formula: a
kernel that keeps a row on the chip can then go from logits to gradient without coming back.

Shapes: `C tokens of a chunk`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .objective import Objective, SpecObjective, TokenGradients
from .spec import CLIPPED_LOSSES

# d (KL estimate) / d logp: by name, in the order of the C interface
KL_SLOPES = ("none", "k1", "abs", "k2", "k3")


@dataclass(frozen=True)
class ClippedSurrogate:
    """d/d logp of -w min(min(r, cap) A, clip(r, low, high) A) + w_kl KL, with r = exp(logp - old).

    The surrogate of PPO (arXiv 1707.06347) with the estimates of
    http://joschu.net/blog/kl-approx.html, one token at a time.
    """

    advantages: Tensor
    """(C,) A"""
    weight: Tensor
    """(C,) w: of the token in the loss, times its importance correction"""
    old_logps: Tensor | None
    """(C,); None: r = 1"""
    low: float
    high: float
    cap: float = math.inf
    kl_slope: str = "none"
    """one of KL_SLOPES"""
    ref_logps: Tensor | None = None
    """(C,) with a KL"""
    kl_weight: Tensor | None = None
    """(C,) w_kl, with a KL"""


@dataclass(frozen=True)
class RowRule:
    """d loss / d (logp, entropy, lse) of some tokens: the sum of what is given and of what the
    clipped surrogate adds to the first."""

    given: TokenGradients
    clipped: ClippedSurrogate | None = None


@dataclass(frozen=True)
class Foreseen:
    """Coefficients that a backend may call as ever, or ask for their rule without log-probs."""

    evaluate: Callable[..., TokenGradients]
    """(tokens, statistics) -> their gradients"""
    rule: Callable[[slice], RowRule | None]
    """tokens -> the same by rule; None: these tokens have none"""

    def __call__(self, tokens: slice, statistics: object) -> TokenGradients:
        return self.evaluate(tokens, statistics)


def rule_of(objective: Objective, tokens: slice, scale: float | Tensor) -> RowRule | None:
    """The rule of some tokens of a built-in loss; None where their coefficients take more than
    their own log-probs, or another formula.

    Args:
        scale: number or () tensor that multiplies the loss.
    """
    if not isinstance(objective, SpecObjective) or objective.needs_whole_rows:
        return None
    spec, view = objective.spec, objective.view[tokens]
    moved = view.old_logps is not None
    corrects = spec.is_correction != "none" and view.rollout_logps is not None
    if (
        spec.loss_type not in CLIPPED_LOSSES
        or (moved and spec.uses_sequence_ratio)
        or (corrects and not moved)
        or (spec.human_ratio == "luffy" and view.is_human is not None)
        or spec.top_entropy_quantile < 1.0
        or spec.off_policy_mask_threshold is not None
        or spec.kl_importance_correction
    ):
        return None
    token_weight = view.weight * scale
    weight = token_weight
    if corrects and objective.is_weight is not None:
        weight = weight * objective.is_weight[tokens]
    has_kl = view.ref_logps is not None and spec.beta != 0.0
    name = spec.kl_estimator
    clipped = ClippedSurrogate(
        advantages=view.advantages,
        weight=weight,
        old_logps=view.old_logps,
        low=1.0 - spec.epsilon,
        high=1.0 + spec.upper_epsilon,
        cap=math.inf if spec.delta is None else spec.delta,
        kl_slope="none" if not has_kl else "k2" if name.endswith("+") else name,
        ref_logps=view.ref_logps if has_kl else None,
        kl_weight=token_weight * spec.beta if has_kl else None,
    )
    entropy = -spec.entropy_coef * token_weight if spec.entropy_coef else None
    return RowRule(TokenGradients(logp=None, entropy=entropy), clipped)
