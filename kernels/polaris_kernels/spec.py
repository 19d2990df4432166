"""What the loss is: `LossSpec`, one validated value with every option of the policy loss.

The equations live in `losses` (analytic derivatives) and `reference` (plain torch, the oracle).
"""

import math
from dataclasses import dataclass
from typing import Any

LOSS_TYPES = (
    "grpo",
    "bnpo",
    "dr_grpo",
    "dapo",
    "cispo",
    "sapo",
    "gspo",
    "gmpo",
    "luspo",
    "vespo",
    "dppo_tv",
    "dppo_kl",
    "clip_cov",
    "kl_cov",
    "dro",
    "reinforce",
)
CLIPPED_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "luspo")
COVARIANCE_LOSSES = ("clip_cov", "kl_cov")
KL_ESTIMATORS = ("k1", "k2", "k3", "abs", "k1+", "k3+", "abs+")
IS_LEVELS = ("token", "sequence", "geometric")
IS_CORRECTIONS = (
    "none",
    *(f"{level}_{how}" for level in IS_LEVELS for how in ("truncate", "mask")),
)
RATIO_LEVELS = ("token", "sequence", "sequence_token")
AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum")
HUMAN_RATIOS = ("same", "luffy")

_SEQUENCE_RATIO_LOSSES = ("gspo", "luspo")
_RATIO_LEVEL_CHOICE = (*CLIPPED_LOSSES, "cispo", "sapo")
_DEFAULT_AGGREGATION = {
    "grpo": "sequence_mean",
    "sapo": "sequence_mean",
    "gspo": "sequence_mean",
    "gmpo": "sequence_mean",
    "dr_grpo": "sequence_sum",
    "luspo": "sequence_sum",
}


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """The policy loss of one run; every field is checked when the spec is made.

    With ratio r, advantage A and log-prob l of a token, the per-token losses are

    - `grpo`, `bnpo`, `dr_grpo`, `dapo`: -min(min(r, delta) A, clip(r, 1-eps, 1+eps_high) A);
    - `gspo`, `luspo`: the same with the geometric-mean ratio of the row;
    - `gmpo`: the row's geometric mean of token ratios clipped in log space;
    - `cispo`: -sg[clip(r, ratio_floor, epsilon_high)] A l (`epsilon_high` is the cap itself, as in
      TRL);
    - `sapo`: -sigmoid(tau (r - 1)) 4 / tau A;
    - `vespo`: -sg[phi(w)] A l with the row's whole ratio w;
    - `dppo_tv`, `dppo_kl`: -sg[M min(r, ratio_cap)] A l; the mask M is 0 where the divergence of
      the two-event distributions (this token, any other) is above `epsilon` (`epsilon_high` for a
      positive advantage) and the update would raise it further. Its paper measures from the rollout
      engine's policy: give its log-probs as `LossRows.old_logps`;
    - `clip_cov`: `dapo`, and no loss on a share of the tokens whose covariance is in a band;
    - `kl_cov`: -r A, and + kl_cov_coef |log r| on the tokens of largest covariance;
    - `dro`: -A l + dro_beta / 2 log(r)^2;
    - `reinforce`: -A l.

    They differ further in `aggregation`, which each one sets when it is None. How tokens are chosen
    by covariance or entropy is told in `selection`.
    """

    loss_type: str = "dapo"
    """Which policy loss; one of `LOSS_TYPES`."""
    epsilon: float = 0.2
    """Lower clip distance: ratios below 1 - epsilon stop a negative advantage. For `dppo_*` the
    largest divergence; its paper takes 0.15 for `dppo_tv` and 0.05 for `dppo_kl`."""
    epsilon_high: float | None = None
    """Upper clip distance (None: epsilon); for `cispo` the cap of the ratio itself."""
    delta: float | None = None
    """Two-sided (dual) clip: the ratio's cap for negative advantages; above 1 + epsilon_high."""
    ratio_cap: float = 20.0
    """Largest ratio that weighs a token of `dppo_*`."""
    ratio_floor: float = 0.0
    """Smallest ratio that weighs a token of `cispo`."""
    ratio_level: str | None = None
    """`token`, `sequence` (geometric mean of the row) or `sequence_token` (its value, but each
    token's gradient is its own: GSPO-token); None: what the loss type means."""
    aggregation: str | None = None
    """`token_mean` (sum / loss tokens), `sequence_mean` (mean over the row's tokens, then over
    rows) or `sequence_sum` (sum / rows / max_completion_length); None: what the loss type means."""
    max_completion_length: int | None = None
    """Tokens; the constant that `sequence_sum` divides by (required by `dr_grpo`)."""
    beta: float = 0.0
    """Weight of the KL penalty to the reference model; above 0 needs `ref_logps`."""
    kl_estimator: str = "k3"
    """One of `KL_ESTIMATORS`; a `+` keeps the value and takes the gradient of k2."""
    kl_importance_correction: bool = False
    """Multiply the KL estimate by the (unclipped) ratio, gradient included."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, differentiated through the full distribution."""
    top_entropy_quantile: float = 1.0
    """Share of the tokens, those of highest entropy, that keep policy loss and entropy bonus; 1
    keeps all. The KL penalty stays on every token."""
    is_correction: str = "none"
    """How pi_old / pi_rollout enters: one of `IS_CORRECTIONS`. `sequence_*` is the product over the
    row, `geometric_*` its geometric mean; `truncate` clamps, `mask` sets to 0 what lies outside
    [is_floor, is_cap]."""
    is_cap: float | None = 2.0
    """Largest importance weight; None: no upper bound."""
    is_floor: float | None = None
    """Smallest importance weight; None: no lower bound."""
    off_policy_mask_threshold: float | None = None
    """Drop rows with negative advantage whose mean(rollout_logps - logps) exceeds this."""
    human_ratio: str = "same"
    """`same`: human rows are treated like any row. `luffy`: their policy term is
    -A p / (p + luffy_gamma), without clipping."""
    luffy_gamma: float = 0.1
    """The gamma of LUFFY's policy shaping."""
    clip_cov_ratio: float = 2e-4
    """Share of the tokens that `clip_cov` takes out of the loss (at least one)."""
    clip_cov_lb: float = 1.0
    """Covariances at or below this are never taken out by `clip_cov`."""
    clip_cov_ub: float = 5.0
    """Covariances at or above this are never taken out by `clip_cov`."""
    kl_cov_ratio: float = 2e-4
    """Share of the tokens that `kl_cov` penalises (at least one)."""
    kl_cov_coef: float = 1.0
    """Weight of the penalty of `kl_cov` (verl's `ppo_kl_coef`)."""
    dro_beta: float = 0.1
    """Weight of the squared log-ratio of `dro`."""
    sapo_temperature_pos: float = 1.0
    """Gate temperature of `sapo` for positive advantages."""
    sapo_temperature_neg: float = 1.05
    """Gate temperature of `sapo` for the other advantages."""
    vespo_k_pos: float = 2.0
    """`vespo` gamma shape for non-negative advantages."""
    vespo_lambda_pos: float = 3.0
    """`vespo` gamma rate for non-negative advantages."""
    vespo_k_neg: float = 3.0
    """`vespo` gamma shape for negative advantages."""
    vespo_lambda_neg: float = 2.0
    """`vespo` gamma rate for negative advantages."""

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_ranges()
        self._check_combinations()

    @property
    def upper_epsilon(self) -> float:
        """Upper clip distance, with the default resolved."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def uses_sequence_ratio(self) -> bool:
        """True when the ratio is one number a row."""
        if self.ratio_level is not None:
            return self.ratio_level != "token"
        return self.loss_type in _SEQUENCE_RATIO_LOSSES

    @property
    def shares_ratio_gradient(self) -> bool:
        """True when every token of a row moves the row's ratio, so that gradients are averaged."""
        averaged = self.uses_sequence_ratio and self.ratio_level != "sequence_token"
        return averaged or self.loss_type == "gmpo"

    @property
    def resolved_aggregation(self) -> str:
        """The aggregation, with the loss type's own as the default."""
        return self.aggregation or _DEFAULT_AGGREGATION.get(self.loss_type, "token_mean")

    def _check_choices(self) -> None:
        _one_of("loss_type", self.loss_type, LOSS_TYPES)
        _one_of("kl_estimator", self.kl_estimator, KL_ESTIMATORS)
        _one_of("is_correction", self.is_correction, IS_CORRECTIONS)
        _one_of("human_ratio", self.human_ratio, HUMAN_RATIOS)
        if self.ratio_level is not None:
            _one_of("ratio_level", self.ratio_level, RATIO_LEVELS)
        if self.aggregation is not None:
            _one_of("aggregation", self.aggregation, AGGREGATIONS)

    def _check_ranges(self) -> None:
        _in_range("epsilon", self.epsilon, 0.0, 1.0)
        for name in ("beta", "entropy_coef", "kl_cov_coef"):
            _in_range(name, getattr(self, name), 0.0, math.inf)
        _in_range("top_entropy_quantile", self.top_entropy_quantile, 0.0, 1.0)
        _in_range("ratio_floor", self.ratio_floor, 0.0, 1.0)
        for name in ("clip_cov_ratio", "kl_cov_ratio"):
            _positive(name, getattr(self, name), largest=1.0)
        for name in (
            "dro_beta",
            "luffy_gamma",
            "ratio_cap",
            "sapo_temperature_pos",
            "sapo_temperature_neg",
            "vespo_k_pos",
            "vespo_lambda_pos",
            "vespo_k_neg",
            "vespo_lambda_neg",
        ):
            _positive(name, getattr(self, name))
        if self.epsilon_high is not None:
            _in_range("epsilon_high", self.epsilon_high, 0.0, math.inf)
        if self.is_cap is not None:
            _positive("is_cap", self.is_cap)
        if self.is_floor is not None:
            _in_range(
                "is_floor", self.is_floor, 0.0, math.inf if self.is_cap is None else self.is_cap
            )
        if not self.clip_cov_lb < self.clip_cov_ub:
            raise _error("clip_cov_lb", self.clip_cov_lb, f"give less than {self.clip_cov_ub}")
        if self.max_completion_length is not None and self.max_completion_length < 1:
            raise _error("max_completion_length", self.max_completion_length, "give 1 or more")

    def _check_combinations(self) -> None:
        if self.loss_type == "cispo" and self.upper_epsilon < 1.0:
            raise _error(
                "epsilon_high",
                self.epsilon_high,
                "cispo caps the ratio itself at epsilon_high; give 1 or more, such as 5.0",
            )
        if self.delta is not None and not self.delta > 1.0 + self.upper_epsilon:
            raise _error(
                "delta", self.delta, f"give more than 1 + epsilon_high = {1 + self.upper_epsilon}"
            )
        if self.delta is not None and self.loss_type not in CLIPPED_LOSSES:
            raise _error(
                "delta", self.delta, f"{self.loss_type} has no two-sided clip; leave it None"
            )
        if self.ratio_level is not None and self.loss_type not in _RATIO_LEVEL_CHOICE:
            raise _error(
                "ratio_level",
                self.ratio_level,
                f"{self.loss_type} defines its own ratio; leave it None",
            )
        if self.loss_type == "gspo" and self.ratio_level == "token":
            raise _error("ratio_level", "token", "gspo is the sequence ratio; use grpo for tokens")
        if self.loss_type == "vespo" and not self.is_correction.startswith(("none", "token")):
            raise _error(
                "is_correction", self.is_correction, "vespo folds token weights in; use token_*"
            )
        if self.loss_type == "gmpo" and self.kl_importance_correction:
            raise _error("kl_importance_correction", True, "gmpo's ratio is no factor of the KL")
        if self.loss_type == "dr_grpo" and self.max_completion_length is None:
            raise _error(
                "max_completion_length", None, "dr_grpo divides by it; give the run's longest"
            )


def _error(field: str, value: Any, remedy: str) -> ValueError:
    return ValueError(f"LossSpec: {field}={value!r} is not possible; {remedy}")


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise _error(field, value, f"use one of {', '.join(allowed)}")


def _in_range(field: str, value: float, low: float, high: float) -> None:
    # written so that nan fails too
    if not low <= value <= high or math.isinf(value):
        raise _error(field, value, f"give a number from {low} to {high}")


def _positive(field: str, value: float, largest: float = math.inf) -> None:
    if not 0.0 < value <= largest or math.isinf(value):
        up_to = "" if math.isinf(largest) else f" and at most {largest}"
        raise _error(field, value, f"give a number above 0{up_to}")
