"""Liger 0.8.5's two GRPO losses, by their signatures, over this head.

    from polaris_kernels.adapters.liger import LigerFusedLinearGRPOLoss, triton_grpo_loss

Liger itself is not needed. Where its numbers differ from the equations these follow the equations:
see docs/liger.md.

Shapes: `B rows . L completion positions . D hidden . V vocab`.
"""

import torch
from torch import Tensor, nn

from ..head import linear_grpo_loss, linear_logps
from ..logits import grpo_loss
from .liger_loss import make_metrics, make_rows, make_spec

Metrics = tuple[Tensor, ...]


class LigerFusedLinearGRPOLoss(nn.Module):
    """GRPO from hidden states: gradients in forward, nothing of shape (B, L, V)."""

    def __init__(
        self,
        beta: float = 0.04,
        compiled: bool = True,
        use_ref_model: bool = True,
        chunk_size: int = 1,
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.2,
        loss_type: str = "dapo",
        max_completion_length: int | None = None,
        importance_sampling_level: str = "token",
        sapo_temperature_pos: float = 1.0,
        sapo_temperature_neg: float = 1.05,
        temperature: float = 1.0,
        delta: float | None = None,
        use_bias_correction_kl: bool = False,
        vespo_k_pos: float = 2.0,
        vespo_lambda_pos: float = 3.0,
        vespo_k_neg: float = 3.0,
        vespo_lambda_neg: float = 2.0,
        *,
        logits_dtype: str = "fp32",
        chunk_bytes: int | None = None,
        backend: str | None = None,
    ) -> None:
        """The options of Liger's class, then those of this head (see `linear_grpo_loss`).

        `compiled` and `chunk_size` say how Liger works, not what it computes; they are accepted for
        its callers' sake and have no effect: memory follows `chunk_bytes`.

        Raises:
            ValueError: an option that is out of range or does not go with the loss type.
        """
        super().__init__()
        self.spec = make_spec(
            "LigerFusedLinearGRPOLoss",
            loss_type=loss_type,
            importance_sampling_level=importance_sampling_level,
            max_completion_length=max_completion_length,
            delta=delta,
            epsilon=epsilon_low,
            epsilon_high=epsilon_high,
            beta=beta,
            kl_importance_correction=use_bias_correction_kl,
            sapo_temperature_pos=sapo_temperature_pos,
            sapo_temperature_neg=sapo_temperature_neg,
            vespo_k_pos=vespo_k_pos,
            vespo_lambda_pos=vespo_lambda_pos,
            vespo_k_neg=vespo_k_neg,
            vespo_lambda_neg=vespo_lambda_neg,
        )
        self.use_ref_model = use_ref_model
        self.temperature = temperature
        self.options = {
            "logits_dtype": logits_dtype, "chunk_bytes": chunk_bytes, "backend": backend
        }  # fmt: skip

    def forward(
        self,
        _input: Tensor,
        lin_weight: Tensor,
        selected_token_ids: Tensor,
        attention_mask: Tensor,
        advantages: Tensor,
        bias: Tensor | None = None,
        ref_per_token_logps: Tensor | None = None,
        old_per_token_logps: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        vllm_is_ratio: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
    ) -> tuple[Tensor, Metrics]:
        """Loss and detached metrics: the mean KL (with beta), the share of clipped tokens.

        Args:
            _input: (B, L, D) or (B * L, D) float.
            lin_weight: (V, D); bias (V,).
            selected_token_ids: (B, L) integers.
            attention_mask: (B, L) bool or 0/1.
            advantages: (B,).
            ref_per_token_logps, old_per_token_logps: (B, L).
            ref_input, ref_weight, ref_bias: a reference head, used where no `ref_per_token_logps`
                are given and `use_ref_model` is on; with it off and no log-probs the KL is 0.
            vllm_is_ratio: (B, L), (B, 1) or (B,) factor of the policy term.
            num_items_in_batch: loss tokens of the whole batch over all processes.
        """
        caller = "LigerFusedLinearGRPOLoss"
        shape = (selected_token_ids.shape[0], selected_token_ids.shape[1])
        ref = ref_per_token_logps
        if self.spec.beta and ref is None and self.use_ref_model:
            if ref_input is None or ref_weight is None:
                raise ValueError(
                    f"{caller}: beta={self.spec.beta} needs ref_per_token_logps, or ref_input and "
                    "ref_weight; pass them, or use_ref_model=False for a KL of 0"
                )
            with torch.no_grad():
                ref = linear_logps(
                    ref_input.reshape(*shape, -1), ref_weight, selected_token_ids, bias=ref_bias,
                    temperature=self.temperature, **self.options,  # type: ignore[arg-type]
                ).logps  # fmt: skip
        rows, spec = make_rows(
            caller,
            self.spec,
            completion_mask=attention_mask,
            shape=shape,
            advantages=advantages,
            old_logps=old_per_token_logps,
            ref_logps=ref,
            vllm_is_ratio=vllm_is_ratio,
            num_items_in_batch=num_items_in_batch,
        )
        found = linear_grpo_loss(
            _input.reshape(*shape, -1), lin_weight, selected_token_ids, rows=rows, spec=spec,
            bias=bias, temperature=self.temperature, **self.options,  # type: ignore[arg-type]
        )  # fmt: skip
        return found.loss, tuple(make_metrics(self.spec, found.metrics))


def triton_grpo_loss(
    logits: Tensor,
    old_logp: Tensor | None,
    ref_logp: Tensor | None,
    completion_ids: Tensor,
    advantages: Tensor,
    completion_mask: Tensor | None = None,
    temperature: float = 0.9,
    beta: float = 0.04,
    eps_low: float = 0.2,
    eps_high: float = 0.4,
    inplace: bool = True,
    loss_type: str = "dapo",
    max_completion_length: int | None = None,
    importance_sampling_level: str = "token",
    reduce: bool = False,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    vllm_is_ratio: Tensor | None = None,
    delta: float | None = None,
    use_bias_correction_kl: bool = False,
    num_items_in_batch: Tensor | float | None = None,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
    *,
    backend: str | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """GRPO from logits, with Liger's defaults (`temperature` is 0.9 there).

    Args:
        logits: (B, L + 1, V); with `inplace` backward writes the gradient over them.
        old_logp, ref_logp: (B, L).
        completion_ids: (B, L) integers.
        advantages: (B,).
        completion_mask: (B, L) bool or 0/1; None: every position.
        reduce: must be True: per-token losses (Liger's default) are not offered.
        backend: name of a backend of this package.

    Returns:
        The loss, and detached metrics: the mean KL (with beta), the share of clipped tokens.

    Raises:
        ValueError: `reduce=False`; an option that is out of range or does not go with the loss.
    """
    caller = "triton_grpo_loss"
    if not reduce:
        raise ValueError(
            f"{caller}: reduce=False (per-token losses) is not offered; pass reduce=True, or take "
            "polaris_kernels.selective_logps and make the per-token losses from its log-probs"
        )
    L = completion_ids.shape[1]
    spec = make_spec(
        caller,
        loss_type=loss_type,
        importance_sampling_level=importance_sampling_level,
        max_completion_length=L if max_completion_length is None else max_completion_length,
        delta=delta,
        epsilon=eps_low,
        epsilon_high=eps_high,
        beta=beta,
        kl_importance_correction=use_bias_correction_kl,
        sapo_temperature_pos=sapo_temperature_pos,
        sapo_temperature_neg=sapo_temperature_neg,
        vespo_k_pos=vespo_k_pos,
        vespo_lambda_pos=vespo_lambda_pos,
        vespo_k_neg=vespo_k_neg,
        vespo_lambda_neg=vespo_lambda_neg,
    )
    if beta and ref_logp is None:
        raise ValueError(f"{caller}: beta={beta} needs ref_logp; pass it, or beta=0")
    rows, spec = make_rows(
        caller,
        spec,
        completion_mask=completion_mask,
        shape=(completion_ids.shape[0], L),
        advantages=advantages,
        old_logps=old_logp,
        ref_logps=ref_logp,
        vllm_is_ratio=vllm_is_ratio,
        num_items_in_batch=num_items_in_batch,
    )
    found = grpo_loss(
        logits, completion_ids, rows=rows, spec=spec, temperature=temperature, inplace=inplace,
        backend=backend,
    )  # fmt: skip
    return found.loss, make_metrics(spec, found.metrics)
