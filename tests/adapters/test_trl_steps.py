"""Ten steps of TRL's own GRPOTrainer with and without the adapter: every metric and gradient."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
import torch

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


LORA = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("saved", [[], ["lm_head"]], ids=["frozen_head", "trainable_head"])
def test_ten_steps_of_lora_agree(qwen3: Any, saved: list[str]) -> None:
    """The reference is the model with its adapters off: the very same forward."""
    from peft import LoraConfig

    runs = []
    for loss in (None, "trl", "fused"):
        torch.manual_seed(0)
        config = LoraConfig(**LORA, modules_to_save=saved)
        options = {"peft_config": config, "beta": 0.1, "learning_rate": 0.5}
        runs.append(trained(qwen3, loss, **options))
    names = runs[0].gradients[0]
    assert all("lora" in n or "modules_to_save" in n for n in names)
    assert any("lm_head" in n for n in names) == bool(saved)
    assert max(runs[0].metric("kl")) > 1e-3
    for run in runs[1:]:
        agree(run, runs[0])


def test_steps_with_ligers_layers_agree(qwen3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`use_liger_kernel` in TRL 1.16 exchanges layers and leaves the head; train() does it, after
    the patch. Of the layers' kernels only rope's runs in Triton's interpreter."""
    if not os.environ.get("TRITON_INTERPRET"):
        pytest.skip("Liger's kernels run on a GPU, or in Triton's interpreter")
    pytest.importorskip("liger_kernel")
    options = {
        "use_liger_kernel": True, "liger_kernel_config": {"rms_norm": False, "swiglu": False},
        "max_steps": 1, "max_completion_length": 3, "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": 2, "num_generations": 2,
    }  # fmt: skip
    # Liger exchanges rope for the whole process: monkeypatch puts it back
    rope = "apply_rotary_pos_emb"
    layers = importlib.import_module("transformers.models.qwen3.modeling_qwen3")
    monkeypatch.setattr(layers, rope, getattr(layers, rope))
    plain = trained(qwen3, None, **options)
    assert getattr(layers, rope).__module__.startswith("liger_kernel")
    for loss in ("trl", "fused"):
        agree(trained(qwen3, loss, **options), plain)


@pytest.mark.parametrize(("module", "name"), [("trl.experimental.gmpo", "GMPO"), ("trl", "RLOO")])
def test_another_trainer_on_the_same_log_probs_agrees(qwen3: Any, module: str, name: str) -> None:
    found = importlib.import_module(module)
    options = {
        "trainer_class": getattr(found, name + "Trainer"),
        "config_class": getattr(found, name + "Config"),
    }
    # RLOO's ratio is exp of the row's *summed* log-ratios
    tolerance = 5e-5 if name == "RLOO" else TOLERANCE
    agree(trained(qwen3, "trl", **options), trained(qwen3, None, **options), tolerance)
