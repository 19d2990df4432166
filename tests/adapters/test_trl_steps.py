"""Ten steps of TRL's own GRPOTrainer with and without the adapter: every metric and gradient."""

from __future__ import annotations

from typing import Any

import pytest

from polaris_kernels.adapters.trl import patch_grpo

from .trl_rig import Run, largest_difference, make_trainer

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-5
CLIPPED = "clip_ratio/region_mean"
CASES: dict[str, dict[str, Any]] = {
    "dapo": {},
    "grpo_kl": {"loss_type": "grpo", "beta": 0.1},
    "bnpo": {"loss_type": "bnpo", "epsilon_high": 0.28, "delta": 1.5},
    "dr_grpo": {"loss_type": "dr_grpo", "mask_truncated_completions": True},
    "cispo_corrected_kl": {
        "loss_type": "cispo", "epsilon_high": 1.2, "beta": 0.1, "use_bias_correction_kl": True,
    },
    "sapo": {"loss_type": "sapo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "vespo": {"loss_type": "vespo"},
    "quantile": {"top_entropy_quantile": 0.4, "beta": 0.1},
    "off_policy_mask": {"off_policy_mask_threshold": 0.02},
    "fp32_head": {"cast_lm_head_to_fp32": True},
    "checkpointed": {"gradient_checkpointing": True},
}  # fmt: skip


def trained(folder: Any, loss: str | None, **options: Any) -> Run:
    trainer = make_trainer(folder, **options)
    if loss is not None:
        patch_grpo(trainer, loss=loss)
    return Run(trainer)


def agree(run: Run, theirs: Run, tolerance: float = TOLERANCE) -> None:
    found = largest_difference(run, theirs)
    assert {"loss", "grad_norm", "entropy", "reward", "gradient"} <= found.keys()
    assert max(found.values()) <= tolerance, found


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_agree(qwen3: Any, name: str) -> None:
    options = CASES[name]
    theirs = trained(qwen3, None, **options)
    assert len(theirs.gradients) == 10
    if theirs.metric(CLIPPED) and name != "dr_grpo":
        assert max(theirs.metric(CLIPPED)) >= 0.1, "ratios near 1 make all losses coincide"
    # vespo's weight is exp of the row's *summed* log-ratios: rounding adds up there
    tolerance = 5e-5 if name == "vespo" else TOLERANCE
    for loss in ("trl", "fused"):
        agree(trained(qwen3, loss, **options), theirs, tolerance)


@pytest.mark.parametrize("options", [{"beta": 0.1}, {"loss_type": "grpo"}], ids=["dapo", "grpo"])
def test_ten_steps_of_a_hybrid_model_agree(qwen3_5: Any, options: dict[str, Any]) -> None:
    theirs = trained(qwen3_5, None, **options)
    for loss in ("trl", "fused"):
        agree(trained(qwen3_5, loss, **options), theirs)


def test_ten_steps_with_an_entropy_bonus_agree(qwen3: Any) -> None:
    options = {"entropy_coef": 0.05}
    agree(trained(qwen3, "trl", **options), trained(qwen3, None, **options))


def test_ten_steps_of_a_frozen_head_agree(qwen3: Any) -> None:
    runs = []
    for loss in (None, "trl", "fused"):
        trainer = make_trainer(qwen3, loss_type="grpo")
        trainer.model.lm_head.weight.requires_grad_(False)
        if loss is not None:
            patch_grpo(trainer, loss=loss)
        runs.append(Run(trainer))
    for run in runs[1:]:
        agree(run, runs[0])
        assert "lm_head.weight" not in run.gradients[0]


def test_another_trainer_on_the_same_log_probs_agrees(qwen3: Any) -> None:
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

    options = {"trainer_class": GMPOTrainer, "config_class": GMPOConfig}
    agree(trained(qwen3, "trl", **options), trained(qwen3, None, **options))
