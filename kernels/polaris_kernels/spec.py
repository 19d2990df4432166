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
    "reinforce",
)
CLIPPED_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "luspo")
KL_ESTIMATORS = ("k1", "k2", "k3", "abs", "k1+", "k3+", "abs+")
IS_CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
RATIO_LEVELS = ("token", "sequence")
AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum")
HUMAN_RATIOS = ("same", "luffy")

_SEQUENCE_RATIO_LOSSES = ("gspo", "luspo")
_RATIO_LEVEL_CHOICE = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "luspo")
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
    - `cispo`: -sg[min(r, epsilon_high)] A l (`epsilon_high` is the cap itself, as in TRL);
    - `sapo`: -sigmoid(tau (r - 1)) 4 / tau A;
    - `vespo`: -sg[phi(w)] A l with the row's whole ratio w;
    - `reinforce`: -A l.

    They differ further in `aggregation`, which each one sets when it is None.
    """

    loss_type: str = "dapo"
    """Which policy loss; one of `LOSS_TYPES`."""
    epsilon: float = 0.2
    """Lower clip distance: ratios below 1 - epsilon stop a negative advantage."""
    epsilon_high: float | None = None
    """Upper clip distance (None: epsilon); for `cispo` the cap of the ratio itself."""
    delta: float | None = None
    """Two-sided (dual) clip: the ratio's cap for negative advantages; above 1 + epsilon_high."""
    ratio_level: str | None = None
    """`token` or `sequence` (geometric mean of the row); None: what the loss type means."""
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
    is_correction: str = "none"
    """How pi_old / pi_rollout enters: one of `IS_CORRECTIONS`. `sequence_*` is the geometric mean
    over the row; `truncate` clamps, `mask` sets to 0 what lies outside [is_floor, is_cap]."""
    is_cap: float = 2.0
    """Largest importance weight."""
    is_floor: float | None = None
    """Smallest importance weight; None: no lower bound."""
    off_policy_mask_threshold: float | None = None
    """Drop rows with negative advantage whose mean(rollout_logps - logps) exceeds this."""
    human_ratio: str = "same"
    """`same`: human rows are treated like any row. `luffy`: their policy term is
    -A p / (p + luffy_gamma), without clipping."""
    luffy_gamma: float = 0.1
    """The gamma of LUFFY's policy shaping."""
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
            return self.ratio_level == "sequence"
        return self.loss_type in _SEQUENCE_RATIO_LOSSES

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
        for name in ("beta", "entropy_coef"):
            _in_range(name, getattr(self, name), 0.0, math.inf)
        for name in (
            "is_cap",
            "luffy_gamma",
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
        if self.is_floor is not None:
            _in_range("is_floor", self.is_floor, 0.0, self.is_cap)
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
        if self.loss_type == "vespo" and self.is_correction.startswith("sequence"):
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


def _positive(field: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise _error(field, value, "give a number above 0")
