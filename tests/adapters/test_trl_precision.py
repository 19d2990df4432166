"""bf16: what TRL's head rounds and this one does not, against float64; and both trainers' modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polaris_kernels import linear_logps
from polaris_kernels.adapters import trl_head
from polaris_kernels.adapters.trl import patch_grpo

from .trl_rig import Run, gradient_difference, make_trainer

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")

N, D, V = 64, 64, 2_000


def peaked() -> tuple[Tensor, Tensor, Tensor]:
    """bf16 hidden states and weights whose logits reach 29, as a trained model's do."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=g)
    weight = torch.randn(V, D, generator=g) * 0.8
    targets = torch.randint(V, (N,), generator=g)
    # half of the tokens are the likely ones
    targets[::2] = (hidden @ weight.T).argmax(-1)[::2]
    return hidden.bfloat16(), weight.bfloat16(), targets


def of_trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    return ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, 32_768, None, 1.0, ("log_probs",)
    )[0]


def ours(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> Tensor:
    return linear_logps(hidden, weight, targets, **options).logps


def test_logits_are_not_rounded_to_bf16() -> None:
    """TRL's tiles are bf16 with a bf16 model; the log-probs' ratios are what GRPO clips at 0.2."""
    hidden, weight, targets = peaked()
    exact = torch.log_softmax(hidden.double() @ weight.double().T, -1)
    exact = exact.gather(-1, targets[:, None])[:, 0]
    mine, theirs, rounded = (
        float((found - exact).abs().max())
        for found in (
            ours(hidden, weight, targets),
            of_trl(hidden, weight, targets),
            ours(hidden, weight, targets, logits_dtype="bf16"),
        )
    )
    print(f"bf16 model, largest error of a log-prob: {mine:.1e} (TRL: {theirs:.1e})")
    assert mine < 1e-4
    assert theirs > 0.01, "TRL keeps fp32 logits now: say so in docs/trl.md and drop this test"
    # the option rounds as TRL does
    assert rounded == pytest.approx(theirs, rel=0.2)


def test_both_heads_differentiate_a_bf16_model_alike() -> None:
    """Gradients in the dtype of the leaves, no further from float64 than twice TRL's."""
    hidden, weight, targets = peaked()
    scale = torch.linspace(-1, 1, N)

    def gradients(function: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (hidden, weight)]
        return list(torch.autograd.grad((function(*leaves, targets) * scale).sum(), leaves))

    def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return torch.log_softmax(hidden @ weight.T, -1).gather(-1, targets[:, None])[:, 0]

    exact = gradients(plain, torch.float64)
    for mine, theirs, truth in zip(
        gradients(ours, torch.bfloat16), gradients(of_trl, torch.bfloat16), exact, strict=True
    ):
        assert mine.dtype == torch.bfloat16
        errors = [float((x.double() - truth).norm() / truth.norm()) for x in (mine, theirs)]
        assert errors[0] <= 2 * errors[1] + 2**-8


@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
def test_a_reference_model_under_autocast_agrees_to_bf16(
    qwen3: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate has wrapped its forward, and TRL's default is autocast."""
    import trl

    options = {
        "trainer_class": getattr(trl, name + "Trainer"),
        "config_class": getattr(trl, name + "Config"),
        "bf16": True, "beta": 0.1, "max_steps": 3,
    }  # fmt: skip
    autocast: list[bool] = []
    real = trl_head.linear_logps

    def watch(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            autocast.append(torch.is_autocast_enabled("cpu"))
        return real(hidden, *args, **kwargs)

    monkeypatch.setattr(trl_head, "linear_logps", watch)
    theirs = Run(make_trainer(qwen3, **options))
    for loss in ("trl", "fused") if name == "GRPO" else ("trl",):
        autocast.clear()
        trainer = make_trainer(qwen3, **options)
        assert "_original_forward" in vars(trainer.ref_model), "this test no longer tests anything"
        patch_grpo(trainer, loss=loss, logits_dtype="bf16")
        run = Run(trainer)
        assert len(autocast) >= 3 and all(autocast)
        # the first updates are the rollout's own, where ratio and KL are 1 and 0
        assert max(theirs.metric("kl")) > 1e-4
        assert run.metric("kl") == pytest.approx(theirs.metric("kl"), rel=0.1, abs=1e-5)
        assert run.metric("loss") == pytest.approx(theirs.metric("loss"), abs=1e-3)
        for mine, exact in zip(run.gradients, theirs.gradients, strict=True):
            assert gradient_difference(mine, exact) < 0.05


@pytest.mark.parametrize(
    "options", [{"bf16": True}, {"dtype": torch.bfloat16}], ids=["autocast", "bf16 weights"]
)
def test_a_step_in_bf16_agrees_to_bf16(qwen3: Path, options: dict[str, Any]) -> None:
    """TRL's default is autocast. Before the first update nothing clips, so rounding stays small."""
    runs = []
    for loss in (None, "trl", "fused"):
        trainer = make_trainer(qwen3, max_steps=1, **options)
        if loss is not None:
            patch_grpo(trainer, loss=loss)
        runs.append(Run(trainer))
    theirs = runs[0]
    for run in runs[1:]:
        for name in ("entropy", "grad_norm"):
            assert run.metric(name) == pytest.approx(theirs.metric(name), rel=1e-2)
        assert run.metric("loss") == pytest.approx(theirs.metric("loss"), abs=1e-4)
        for n, g in theirs.gradients[0].items():
            assert run.gradients[0][n].dtype == g.dtype
