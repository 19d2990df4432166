"""Agreement with TRL 1.16 and Liger 0.8.5, run on the same inputs: values and gradients.

Ratios lie in [.5, 2] and at least 10 % of the tokens are clipped: at ratio 1 all losses coincide.
"""

from collections import defaultdict
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from polaris_kernels import LossRows, LossSpec, linear_grpo_loss

from .cases import assert_close, make_head

B, L, D, V = 6, 10, 8, 50


class Batch:
    """One padded batch with every input, and the log-probs that both sides start from."""

    def __init__(self, dtype: torch.dtype, clip: float) -> None:
        self.head = make_head(B * L, D, V, dtype=dtype, temperature=0.9)
        g = torch.Generator().manual_seed(7)
        lengths = torch.tensor([10, 7, 3, 10, 1, 8])
        self.mask = torch.arange(L) < lengths[:, None]
        self.advantages = torch.tensor([1.0, -0.7, 0.4, -1.3, 2.0, -0.2], dtype=dtype)
        plain = self.head.plain()
        self.logps, self.entropy = plain.logps.view(B, L), plain.entropy.view(B, L)
        now = self.logps.detach()
        spread = (torch.rand(3, B, L, generator=g, dtype=torch.float64) * 2 - 1).to(dtype)
        self.old, self.ref = now - 0.69 * spread[0], now + 0.5 * spread[1]
        self.is_ratio = (0.4 * spread[2]).exp()
        ratio = (now - self.old).exp()[self.mask]
        assert ratio.min() >= 0.5 and ratio.max() <= 2.0
        outside = (ratio - 1).abs() > clip
        assert outside.double().mean() >= 0.1

    def ours(self, spec: LossSpec, *, corrected: bool = False):
        if spec.resolved_aggregation == "token_mean":
            denominator = float(self.mask.sum())
        else:
            denominator = float(B)
        rows = LossRows.from_padded(
            mask=self.mask,
            advantages=self.advantages,
            old_logps=self.old,
            ref_logps=self.ref,
            rollout_logps=self.old - self.is_ratio.log() if corrected else None,
            denominator=denominator,
        )
        return linear_grpo_loss(
            self.head.hidden.view(B, L, D),
            self.head.weight,
            self.head.targets.view(B, L),
            rows=rows,
            spec=spec,
            **self.head.options,
        )

    def agree(self, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
        assert_close(ours, theirs, tolerance, "loss")
        a = torch.autograd.grad(ours, self.head.leaves)
        b = torch.autograd.grad(theirs, self.head.leaves)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y, tolerance, "gradient")


COMMON = {"epsilon": 0.2, "epsilon_high": 0.28}
CASES = {
    "grpo": LossSpec(loss_type="grpo", **COMMON),
    "grpo_kl": LossSpec(loss_type="grpo", beta=0.1, **COMMON),
    "bnpo": LossSpec(loss_type="bnpo", **COMMON),
    "dapo": LossSpec(loss_type="dapo", **COMMON),
    "dapo_delta": LossSpec(loss_type="dapo", delta=1.5, **COMMON),
    "dapo_kl_corrected": LossSpec(beta=0.1, kl_importance_correction=True, **COMMON),
    "dr_grpo": LossSpec(loss_type="dr_grpo", max_completion_length=L, **COMMON),
    "cispo": LossSpec(loss_type="cispo", epsilon_high=1.3),
    # TRL holds these temperatures in float32: 1.25 is exact there
    "sapo": LossSpec(loss_type="sapo", sapo_temperature_neg=1.25),
    "gspo": LossSpec(loss_type="gspo", epsilon=0.05, epsilon_high=0.05),
    "gspo_kl_corrected": LossSpec(
        loss_type="gspo", epsilon=0.05, beta=0.1, kl_importance_correction=True
    ),
    "luspo": LossSpec(loss_type="luspo", epsilon=0.05),
    "vespo": LossSpec(loss_type="vespo"),
}


def trl_self(spec: LossSpec, batch: Batch, *, corrected: bool, entropy_coef: float = 0.0):
    """What GRPOTrainer._compute_loss reads from its trainer."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    accelerator = SimpleNamespace(
        num_processes=1,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, dim, pad_index: x,
    )
    args = SimpleNamespace(
        delta=spec.delta,
        use_bias_correction_kl=spec.kl_importance_correction,
        sapo_temperature_pos=spec.sapo_temperature_pos,
        sapo_temperature_neg=spec.sapo_temperature_neg,
        vespo_k_pos=spec.vespo_k_pos,
        vespo_k_neg=spec.vespo_k_neg,
        vespo_lambda_pos=spec.vespo_lambda_pos,
        vespo_lambda_neg=spec.vespo_lambda_neg,
        steps_per_generation=1,
    )
    me = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (batch.logps, batch.entropy, None),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
        accelerator=accelerator,
        args=args,
        beta=spec.beta,
        epsilon_low=spec.epsilon,
        epsilon_high=spec.upper_epsilon,
        loss_type="grpo" if spec.loss_type == "gspo" else spec.loss_type,
        importance_sampling_level="sequence" if spec.uses_sequence_ratio else "token",
        max_completion_length=spec.max_completion_length,
        top_entropy_quantile=spec.top_entropy_quantile,
        off_policy_mask_threshold=spec.off_policy_mask_threshold,
        aux_loss_enabled=False,
        use_vllm=corrected,
        vllm_importance_sampling_correction=corrected,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        use_adaptive_entropy=False,
        entropy_coef=entropy_coef,
        _entropy_bonus_enabled=entropy_coef != 0.0,
        _metrics={"train": defaultdict(list)},
    )
    me.get_high_entropy_mask = partial(GRPOTrainer.get_high_entropy_mask, me)
    return me


def trl_loss(spec: LossSpec, batch: Batch, *, corrected: bool = False, entropy_coef: float = 0.0):
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    me = trl_self(spec, batch, corrected=corrected, entropy_coef=entropy_coef)
    me.accelerator.sync_gradients = True
    inputs = {
        "prompt_ids": torch.zeros(B, 1, dtype=torch.long),
        "prompt_mask": torch.ones(B, 1, dtype=torch.long),
        "completion_ids": batch.head.targets.view(B, L),
        "completion_mask": batch.mask.long(),
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old,
        "ref_per_token_logps": batch.ref,
        "num_items_in_batch": batch.mask.sum(),
    }
    if corrected:
        # off the mask TRL's ratio is 1 by construction
        inputs["importance_sampling_ratio"] = torch.where(batch.mask, batch.is_ratio, 1.0)
        inputs["sampling_per_token_logps"] = batch.old - batch.is_ratio.log()
    loss = trainer._compute_loss(me, None, inputs)
    return loss, me._metrics["train"]


@pytest.mark.parametrize("name", CASES)
def test_trl_agrees(name):
    spec = CASES[name]
    batch = Batch(torch.float64, clip=0.2)
    theirs, metrics = trl_loss(spec, batch)
    ours = batch.ours(spec)
    batch.agree(ours.loss, theirs, 1e-10)
    tokens = ours.metrics["num_tokens"]
    assert metrics["entropy"][0] == pytest.approx(float(ours.metrics["sum_entropy"] / tokens))
    if spec.uses_sequence_ratio:
        assert ours.metrics["num_clip_low"] + ours.metrics["num_clip_high"] >= 0.1 * tokens
    if spec.beta:
        assert metrics["kl"][0] == pytest.approx(float(ours.metrics["sum_kl"] / tokens))
    if "clip_ratio/high_mean" in metrics and not spec.uses_sequence_ratio:
        for side in ("low", "high"):
            count = float(ours.metrics[f"num_clip_{side}"])
            assert count > 0
            assert metrics[f"clip_ratio/{side}_mean"][0] == pytest.approx(count / float(tokens))


@pytest.mark.parametrize("name", ["grpo", "dapo", "cispo", "sapo", "gspo", "vespo"])
def test_trl_agrees_with_an_importance_correction(name):
    spec = replace(CASES[name], is_correction="token_truncate", is_cap=10.0)
    batch = Batch(torch.float64, clip=0.2)
    batch.agree(
        batch.ours(spec, corrected=True).loss, trl_loss(spec, batch, corrected=True)[0], 1e-10
    )


def test_trl_agrees_on_the_off_policy_mask():
    batch = Batch(torch.float64, clip=0.2)
    spec = LossSpec(**COMMON, off_policy_mask_threshold=0.02, is_correction="token_truncate",
                    is_cap=10.0)  # fmt: skip
    without = LossSpec(**COMMON, is_correction="token_truncate", is_cap=10.0)
    ours = batch.ours(spec, corrected=True).loss
    assert ours != batch.ours(without, corrected=True).loss
    batch.agree(ours, trl_loss(spec, batch, corrected=True)[0], 1e-10)


def test_trl_agrees_on_the_entropy_bonus():
    batch = Batch(torch.float64, clip=0.2)
    spec = LossSpec(**COMMON, entropy_coef=0.05)
    theirs = trl_loss(LossSpec(**COMMON), batch, entropy_coef=0.05)[0]
    batch.agree(batch.ours(spec).loss, theirs, 1e-10)


@pytest.mark.parametrize(
    "spec",
    [
        LossSpec(loss_type="cispo", epsilon_high=1.02, ratio_level="sequence"),
        LossSpec(loss_type="sapo", sapo_temperature_neg=1.25, ratio_level="sequence"),
    ],
    ids=lambda spec: spec.loss_type,
)
def test_trl_agrees_on_row_ratios_of_losses_with_token_ratios(spec):
    batch = Batch(torch.float64, clip=0.2)
    ours = batch.ours(spec)
    batch.agree(ours.loss, trl_loss(spec, batch)[0], 1e-10)
    if spec.loss_type == "cispo":
        assert ours.metrics["num_clip_high"] >= 0.1 * ours.metrics["num_tokens"]


@pytest.mark.parametrize("name", ["dapo", "grpo", "gspo", "luspo", "cispo", "vespo", "sapo"])
def test_trl_agrees_on_the_top_entropy_quantile(name):
    batch = Batch(torch.float64, clip=0.2)
    spec = replace(CASES[name], beta=0.1, top_entropy_quantile=0.3)
    ours = batch.ours(spec)
    assert ours.metrics["num_high_entropy"] == 12 and ours.metrics["num_tokens"] == 39
    batch.agree(ours.loss, trl_loss(spec, batch)[0], 1e-10)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_liger_agrees(name):
    chunked = pytest.importorskip("liger_kernel.chunked_loss.grpo_loss")
    spec = CASES[name]
    batch = Batch(torch.float32, clip=0.2)
    theirs = chunked.LigerFusedLinearGRPOLoss(
        beta=spec.beta,
        compiled=False,
        use_ref_model=spec.beta > 0,
        chunk_size=2,
        epsilon_low=spec.epsilon,
        epsilon_high=spec.upper_epsilon,
        loss_type="grpo" if spec.loss_type == "gspo" else spec.loss_type,
        max_completion_length=spec.max_completion_length,
        importance_sampling_level="sequence" if spec.uses_sequence_ratio else "token",
        temperature=0.9,
        delta=spec.delta,
        sapo_temperature_neg=spec.sapo_temperature_neg,
        use_bias_correction_kl=spec.kl_importance_correction,
    )
    loss, _ = theirs(
        batch.head.hidden.view(B, L, D),
        batch.head.weight,
        batch.head.targets.view(B, L),
        batch.mask.long(),
        batch.advantages,
        ref_per_token_logps=batch.ref,
        old_per_token_logps=batch.old,
    )
    batch.agree(batch.ours(spec).loss, loss, 2e-5)
