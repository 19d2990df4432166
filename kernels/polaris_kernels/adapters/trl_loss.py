"""TRL's GRPO loss through `linear_grpo_loss`: three GEMMs instead of four with a trainable head.

TRL's own `_compute_loss` still runs, on the log-probs and entropies that the fused pass has found:
it makes every metric, and its loss is compared with the fused one at each call. A change in TRL's
maths that this file does not know ends the run with both numbers.

Shapes: `B rows . L completion positions . K = tokens with a label (attention mask on)`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..rows import LossRows
from ..spec import CLIPPED_LOSSES, LossSpec
from .trl_head import HeadKernel, read_loss

_TOKEN_SUMS = ("cispo", "dapo", "vespo")
# of the terms' size: both losses come from the same float32 log-probs
_TOLERANCE = 1e-4


def spec_of(trainer: Any) -> LossSpec:
    """The trainer's loss as a `LossSpec`.

    Raises:
        ValueError: an option that the fused loss computes otherwise than TRL, or not at all.
    """
    args, kind = trainer.args, trainer.loss_type
    by_row = trainer.importance_sampling_level == "sequence"
    corrects = trainer.use_vllm and trainer.vllm_importance_sampling_correction
    mode = trainer.vllm_importance_sampling_mode if corrects else "none"
    _check_options(trainer, mode)
    options: dict[str, Any] = {}
    if kind != "vespo":
        options["ratio_level"] = "sequence" if by_row else "token"
    if kind == "dr_grpo":
        options["max_completion_length"] = trainer.max_completion_length
    try:
        return LossSpec(
            loss_type=kind,
            epsilon=trainer.epsilon_low,
            epsilon_high=trainer.epsilon_high,
            delta=args.delta if kind in CLIPPED_LOSSES else None,
            beta=trainer.beta,
            kl_importance_correction=args.use_bias_correction_kl,
            top_entropy_quantile=trainer.top_entropy_quantile,
            off_policy_mask_threshold=trainer.off_policy_mask_threshold,
            is_correction=mode,
            is_cap=trainer.vllm_importance_sampling_clip_max if corrects else None,
            is_floor=trainer.vllm_importance_sampling_clip_min if corrects else None,
            sapo_temperature_pos=args.sapo_temperature_pos,
            sapo_temperature_neg=args.sapo_temperature_neg,
            vespo_k_pos=args.vespo_k_pos,
            vespo_k_neg=args.vespo_k_neg,
            vespo_lambda_pos=args.vespo_lambda_pos,
            vespo_lambda_neg=args.vespo_lambda_neg,
            **options,
        )
    except ValueError as error:
        raise ValueError(
            f"patch_grpo: loss='fused' cannot take the trainer's options ({error}); use loss='trl'"
        ) from error


def _check_options(trainer: Any, mode: str) -> None:
    """ValueError for what the fused loss does not have."""
    if trainer.accelerator.mixed_precision == "fp16":
        # its loss scale comes behind the loss, when small gradients are rounded to 0 already
        _refuse("fp16", True)
    if trainer._entropy_bonus_enabled:
        # TRL averages the bonus over tokens whatever the loss divides by
        name = "use_adaptive_entropy" if trainer.use_adaptive_entropy else "entropy_coef"
        _refuse(name, getattr(trainer.args, name))
    if trainer.aux_loss_enabled:
        _refuse("router_aux_loss_coef", trainer.router_aux_loss_coef)
    if trainer.top_entropy_quantile < 1.0 and trainer.accelerator.num_processes > 1:
        # TRL takes the quantile over all processes, from this very forward
        _refuse("top_entropy_quantile", trainer.top_entropy_quantile)
    if trainer.loss_type == "vespo" and trainer.importance_sampling_level == "sequence":
        _refuse("importance_sampling_level", "sequence")
    if trainer.loss_type == "vespo" and mode.startswith("sequence"):
        _refuse("vllm_importance_sampling_mode", mode)


def rows_of(trainer: Any, inputs: dict[str, Any]) -> LossRows:
    """The loss's inputs for the K tokens that TRL's forward hands to the head, row after row."""
    labelled = inputs["completion_mask"] != 0
    B = labelled.shape[0]
    loss_mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    row = torch.arange(B, device=labelled.device).unsqueeze(1).expand_as(labelled)[labelled]
    advantages = inputs["advantages"]
    num_rows = B
    if advantages.dim() == 2:
        advantages = advantages.expand_as(labelled)[labelled]
        # one empty row more where K tokens could be taken for K rows
        num_rows += int(advantages.shape[0] == B)

    def of_tokens(name: str) -> Tensor | None:
        value = inputs.get(name)
        return None if value is None else value[labelled]

    return LossRows(
        row_of_token=row,
        num_rows=num_rows,
        advantages=advantages,
        completion_mask=loss_mask[labelled],
        old_logps=of_tokens("old_per_token_logps"),
        ref_logps=of_tokens("ref_per_token_logps") if trainer.beta else None,
        rollout_logps=of_tokens("sampling_per_token_logps"),
        denominator=_denominator(trainer, inputs, loss_mask),
    )


class FusedLoss:
    """Stands in for the trainer's `_compute_loss`."""

    def __init__(self, trainer: Any, kernel: HeadKernel) -> None:
        self.trainer = trainer
        self.kernel = kernel
        self.spec = spec_of(trainer)
        self._theirs: Callable[[Any, dict[str, Any]], Tensor] = trainer._compute_loss
        self._logps: Callable[..., tuple[Tensor, Any, Any]] = (
            trainer._get_per_token_logps_and_entropies
        )
        self._carried: Tensor | None = None

    def on(self) -> None:
        """Put both methods on the trainer."""
        self.trainer._compute_loss = self.compute_loss
        self.trainer._get_per_token_logps_and_entropies = self.logps

    def off(self) -> None:
        """Uncover the class's own methods."""
        for name in ("_compute_loss", "_get_per_token_logps_and_entropies"):
            self.trainer.__dict__.pop(name, None)

    def logps(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any, Any]:
        """TRL's own method; it remembers the log-probs, which carry the loss's graph."""
        found = self._logps(*args, **kwargs)
        self._carried = found[0]
        return found

    def compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The fused loss, TRL's metrics, and a comparison of both losses."""
        kernel = self.kernel
        kernel.result = None
        kernel.pending = (rows_of(self.trainer, inputs), self.spec)
        try:
            theirs = self._theirs(model, inputs).detach()
        finally:
            kernel.pending = None
        found, kernel.result = kernel.result, None
        carried, self._carried = self._carried, None
        if found is None or carried is None:
            raise RuntimeError(
                "patch_grpo: TRL's _compute_loss did not call the model's fused head, so that no "
                "fused loss was made; use loss='trl'"
            )
        self._compare(found.loss.detach(), theirs, inputs)
        return read_loss(carried, inputs["completion_mask"] != 0, found)

    def _compare(self, ours: Tensor, theirs: Tensor, inputs: dict[str, Any]) -> None:
        difference = (ours - theirs).abs()
        # terms cancel over a group, and with them the loss, but not the terms' rounding
        terms = inputs["advantages"].abs().amax().clamp(min=1.0)
        if self.spec.loss_type == "luspo":
            terms = terms * inputs["completion_mask"].sum(-1).amax()
        near = (difference <= _TOLERANCE * torch.maximum(theirs.abs(), terms)) & theirs.isfinite()
        # what is infinite or nan must be so in both; no comparison holds for nan
        if not (near | (ours == theirs) | (ours.isnan() & theirs.isnan())):
            raise RuntimeError(
                f"patch_grpo: the fused {self.spec.loss_type} loss is {float(ours):.8g}, TRL's own "
                f"{float(theirs):.8g} from the same log-probs; train with loss='trl' and report "
                "the trainer's arguments"
            )


def _denominator(trainer: Any, inputs: dict[str, Any], mask: Tensor) -> float | Tensor:
    """What TRL divides the summed loss by, and its share of the accumulation window."""
    training = trainer.model.training
    windows = trainer.current_gradient_accumulation_steps if training else 1.0
    if trainer.loss_type in _TOKEN_SUMS:
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / trainer.accelerator.num_processes
        return tokens * windows / trainer.args.steps_per_generation if training else tokens
    if trainer.loss_type == "bnpo":
        return mask.sum().clamp(min=1.0) * windows
    return float(mask.shape[0]) * windows


def _refuse(option: str, value: Any) -> None:
    raise ValueError(
        f"patch_grpo: loss='fused' does not reproduce TRL's {option}={value!r}; use loss='trl', "
        "which runs TRL's own loss code on this head's log-probs"
    )
