"""Every loss of TRL's GRPOTrainer x ratio level x KL x correction, on one batch of its own trainer.

Ratios lie in [.5, 2] and at least 10 % of the tokens are clipped: at ratio 1 all losses coincide.
`-s` prints the table of the largest relative differences of loss, metrics and gradients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polaris_kernels.adapters.trl import patch_grpo

from .agreement import AgreementTable
from .trl_rig import PAD, V, gradient_difference, make_trainer

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")

B, P, L = 6, 4, 12
TOLERANCE = 1e-5
# vespo's weight is exp of the row's *summed* log-ratios: rounding of 12 log-probs adds up there
VESPO_TOLERANCE = 5e-5
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
TYPES = (*CLIPPED, "cispo", "sapo", "vespo")
LEVELS = ("token", "sequence")
# vespo has a ratio of its own; TRL warns of another level
LOSSES = [(t, level) for t in TYPES for level in LEVELS if (t, level) != ("vespo", "sequence")]
KLS: dict[str, dict[str, Any]] = {
    "no KL": {"beta": 0.0},
    "k3": {"beta": 0.1},
    "k3 corrected": {"beta": 0.1, "use_bias_correction_kl": True},
}
CORRECTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "token_truncate": {"mode": "token_truncate"},
    "token_mask": {"mode": "token_mask"},
    "sequence_truncate": {"mode": "sequence_truncate"},
    "sequence_mask": {"mode": "sequence_mask"},
    "off-policy mask": {"mode": "token_truncate", "off_policy_mask_threshold": 0.02},
    "top entropy": {"top_entropy_quantile": 0.3},
    "delta": {"delta": 1.35},
}
CLIP_MIN, CLIP_MAX = 0.8, 1.25


def tolerance(loss: str) -> float:
    return VESPO_TOLERANCE if loss == "vespo" else TOLERANCE


def offered(loss: str, correction: str) -> bool:
    """Whether TRL has the combination."""
    if correction == "delta":
        return loss in CLIPPED
    # GRPOTrainer's constructor refuses it
    return not (loss == "vespo" and correction.startswith("sequence"))


@pytest.fixture(scope="module")
def table() -> Iterator[AgreementTable]:
    found = AgreementTable(
        "Largest relative difference from TRL 1.16's own (log-probs from this head, fused loss)"
    )
    yield found
    print(found.text())


@pytest.fixture(scope="module")
def trainer(qwen3: Path) -> Any:
    return make_trainer(qwen3, temperature=0.9, max_completion_length=L, steps_per_generation=4)


@pytest.fixture(scope="module")
def batch(trainer: Any) -> dict[str, Any]:
    """Prompts padded on the left, completions on the right, some tokens written by a tool."""
    g = torch.Generator().manual_seed(11)
    lengths = torch.tensor([12, 7, 3, 12, 1, 9])
    completion_mask = (torch.arange(L) < lengths[:, None]).long()
    prompt_mask = (torch.arange(P) >= torch.tensor([0, 2, 1, 0, 3, 0])[:, None]).long()
    ids = torch.randint(3, V, (B, P + L), generator=g)
    ids = ids.where(torch.cat([prompt_mask, completion_mask], 1) != 0, PAD)
    tool_mask = (torch.rand(B, L, generator=g) > 0.1).long()
    tool_mask[:, 0] = 1
    now = log_probs(trainer, ids, prompt_mask, completion_mask)
    spread = torch.rand(3, B, L, generator=g) * 2 - 1
    old = now - 0.69 * spread[0]
    ratio = (now - old).exp()[(completion_mask * tool_mask) != 0]
    assert ratio.min() >= 0.5 and ratio.max() <= 2.0
    rollout = old - 0.4 * spread[2]
    rollout[1, 2] = float("nan")
    return {
        "prompt_ids": ids[:, :P], "prompt_mask": prompt_mask,
        "completion_ids": ids[:, P:], "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "advantages": torch.tensor([1.0, -0.7, 0.4, -1.3, 2.0, -0.2]),
        "old_per_token_logps": old,
        "ref_per_token_logps": now + 0.5 * spread[1],
        "sampling_per_token_logps": rollout,
        "num_items_in_batch": 2.5 * (completion_mask * tool_mask).sum(),
    }  # fmt: skip


def log_probs(trainer: Any, ids: Tensor, prompt_mask: Tensor, completion_mask: Tensor) -> Tensor:
    with torch.no_grad():
        return trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, torch.cat([prompt_mask, completion_mask], 1), L
        )[0]


def corrected(batch: dict[str, Any], mode: str) -> dict[str, Any]:
    """The batch with the ratio that TRL computes from the rollout engine's log-probs."""
    mask = batch["completion_mask"] * batch["tool_mask"]
    change = batch["old_per_token_logps"] - batch["sampling_per_token_logps"]
    change = (change * mask).nan_to_num(nan=0.0)
    if mode.startswith("sequence"):
        change = change.sum(-1, keepdim=True)
    ratio = change.exp()
    if mode.endswith("truncate"):
        ratio = ratio.clamp(CLIP_MIN, CLIP_MAX)
    else:
        ratio = ratio.masked_fill((ratio < CLIP_MIN) | (ratio > CLIP_MAX), 0.0)
    return {**batch, "importance_sampling_ratio": ratio}


def configure(trainer: Any, loss: str, options: dict[str, Any], level: str = "token") -> None:
    """What GRPOTrainer.__init__ would have read from its config."""
    mode = options.get("mode")
    trainer.loss_type = loss
    trainer.importance_sampling_level = level
    trainer.epsilon_low, trainer.epsilon_high = (0.2, 0.28) if level == "token" else (0.05, 0.05)
    if loss == "cispo":
        trainer.epsilon_high = 1.1 if level == "token" else 1.02
    trainer.beta = options.get("beta", 0.0)
    trainer.args.delta = options.get("delta")
    trainer.args.use_bias_correction_kl = options.get("use_bias_correction_kl", False)
    trainer.top_entropy_quantile = options.get("top_entropy_quantile", 1.0)
    trainer.off_policy_mask_threshold = options.get("off_policy_mask_threshold")
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = mode is not None
    trainer.vllm_importance_sampling_mode = mode
    trainer.vllm_importance_sampling_clip_min = CLIP_MIN
    trainer.vllm_importance_sampling_clip_max = CLIP_MAX
    trainer.current_gradient_accumulation_steps = 2
    trainer.model.train()


def loss_and_gradients(
    trainer: Any, batch: dict[str, Any]
) -> tuple[float, dict[str, Tensor], dict[str, list[float]]]:
    trainer.model.zero_grad()
    trainer._metrics["train"] = defaultdict(list)
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    named = trainer.model.named_parameters()
    gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}
    return float(loss), gradients, dict(trainer._metrics["train"])


def differences(trainer: Any, batch: dict[str, Any], *losses: str) -> list[float]:
    """The largest difference of loss, metrics and gradients from TRL's own, patched as `losses`."""
    theirs = loss_and_gradients(trainer, batch)
    found = []
    for loss in losses:
        with patch_grpo(trainer, loss=loss):
            ours = loss_and_gradients(trainer, batch)
        assert ours[2].keys() == theirs[2].keys()
        numbers = [(ours[0], theirs[0])]
        numbers += [
            (a, b) for n in theirs[2] for a, b in zip(ours[2][n], theirs[2][n], strict=True)
        ]
        scalar = max(abs(a - b) / max(abs(b), 0.1) for a, b in numbers if b == b)
        found.append(max(scalar, gradient_difference(ours[1], theirs[1])))
    return found


@pytest.mark.parametrize(("loss", "level"), LOSSES)
def test_every_kl_and_correction_agrees(
    trainer: Any, batch: dict[str, Any], table: AgreementTable, loss: str, level: str
) -> None:
    worst = 0.0
    for kl, more in KLS.items():
        for correction, options in CORRECTIONS.items():
            if not offered(loss, correction):
                continue
            configure(trainer, loss, options | more, level)
            inputs = corrected(batch, options["mode"]) if "mode" in options else batch
            found = differences(trainer, inputs, "trl", "fused")
            table.add((loss, level, kl), correction, *found)
            worst = max(worst, *found)
    assert 0 < worst <= tolerance(loss)


@pytest.mark.parametrize(("loss", "level"), LOSSES)
def test_the_batch_clips_at_least_a_tenth(
    trainer: Any, batch: dict[str, Any], loss: str, level: str
) -> None:
    configure(trainer, loss, {}, level)
    metrics = loss_and_gradients(trainer, batch)[2]
    share = metrics.get("clip_ratio/region_mean") or metrics.get("cispo_clip_ratio")
    if share is None:
        assert loss in ("sapo", "vespo"), "these have no clip; their ratios are the batch's"
    else:
        assert share[0] >= 0.1


def test_a_combination_that_trl_refuses_is_refused(trainer: Any) -> None:
    configure(trainer, "vespo", {"mode": "sequence_mask"})
    with pytest.raises(ValueError, match="vllm_importance_sampling_mode"):
        patch_grpo(trainer, loss="fused")


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_window_of_each_mode_is_divided_out(
    trainer: Any, batch: dict[str, Any], mode: str
) -> None:
    for loss, level in LOSSES:
        configure(trainer, loss, {"delta": 1.6} if loss == "grpo" else {}, level)
        trainer.model.train(mode == "train")
        trainer._metrics["eval"] = defaultdict(list)
        theirs = float(trainer._compute_loss(trainer.model, batch))
        with patch_grpo(trainer, loss="fused"):
            ours = float(trainer._compute_loss(trainer.model, batch))
        assert ours == pytest.approx(theirs, rel=tolerance(loss), abs=1e-6), loss


def test_advantages_of_tokens_agree(trainer: Any, batch: dict[str, Any]) -> None:
    g = torch.Generator().manual_seed(2)
    per_token = {**batch, "advantages": torch.randn(B, L, generator=g)}
    configure(trainer, "dapo", {})
    assert differences(trainer, per_token, "fused")[0] <= TOLERANCE


def test_rows_without_any_token_agree(trainer: Any, batch: dict[str, Any]) -> None:
    empty = {**batch, "completion_mask": batch["completion_mask"].clone()}
    empty["completion_mask"][2] = 0
    # TRL divides a row's clip share by its tokens, which are 0 here
    for loss in ("dapo", "sapo", "vespo"):
        configure(trainer, loss, {"beta": 0.1})
        assert max(differences(trainer, empty, "trl", "fused")) <= tolerance(loss)
    empty["completion_mask"][:] = 0
    configure(trainer, "sapo", {})
    for how in ("trl", "fused"):
        with patch_grpo(trainer, loss=how):
            loss, gradients, _ = loss_and_gradients(trainer, empty)
        assert loss == 0.0 and all(not g.any() for g in gradients.values()) and gradients
