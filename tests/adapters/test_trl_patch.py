"""What `patch_grpo` touches, what it refuses, and how it is taken back."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import polaris_kernels
from polaris_kernels.adapters import trl_head
from polaris_kernels.adapters.host import Host, release
from polaris_kernels.adapters.trl import TRL, patch_grpo
from polaris_kernels.adapters.trl_loss import FusedLoss
from polaris_kernels.backends.torch_chunked import TorchBackend

from .trl_rig import Run, make_trainer

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """How many tokens each call of one of this head's functions got."""
    tokens: list[int] = []
    real = getattr(trl_head, name)

    def call(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        tokens.append(hidden.shape[0])
        return real(hidden, *args, **kwargs)

    monkeypatch.setattr(trl_head, name, call)
    return tokens


def one_loss(trainer: Any) -> torch.Tensor:
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    ids = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(0))
    trainer.current_gradient_accumulation_steps = 1
    return trainer._compute_loss(trainer.model, {
        "prompt_ids": ids, "prompt_mask": torch.ones_like(ids),
        "completion_ids": ids, "completion_mask": mask,
        "advantages": torch.tensor([1.0, -1.0]), "num_items_in_batch": mask.sum(),
    })  # fmt: skip


@pytest.mark.parametrize(("loss", "used"), [("trl", "linear_logps"), ("fused", "linear_grpo_loss")])
def test_only_tokens_with_a_label_reach_the_head(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch, loss: str, used: str
) -> None:
    trainer = make_trainer(qwen3)
    tokens = counted(monkeypatch, used)
    with patch_grpo(trainer, loss=loss):
        one_loss(trainer).backward()
        assert tokens == [8]
    one_loss(trainer)
    assert tokens == [8], "TRL's own head after the block"


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "autocast"])
def test_undo_restores_everything(qwen3: Path, bf16: bool) -> None:
    trainer = make_trainer(qwen3, beta=0.1, bf16=bf16)
    models = (trainer.model, trainer.ref_model)
    before = [dict(vars(x)) for x in (trainer, *models)]
    forwards = [m.forward for m in models]
    patch = patch_grpo(trainer, loss="fused")
    assert all(m.forward != f for m, f in zip(models, forwards, strict=True))
    patch.undo()
    patch.undo()
    assert [m.forward for m in models] == forwards
    assert [vars(x).keys() for x in (trainer, *models)] == [x.keys() for x in before]


def test_undo_reaches_below_a_wrapper_put_around_forward_since(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(qwen3)
    tokens = counted(monkeypatch, "linear_logps")
    patch = patch_grpo(trainer)
    inner = trainer.model.forward
    wrapped = lambda *args, **kwargs: inner(*args, **kwargs)
    trainer.model.forward = wrapped
    one_loss(trainer)
    patch.undo()
    assert trainer.model.forward is wrapped
    one_loss(trainer)
    assert len(tokens) == 1


def test_other_trainers_of_the_process_keep_their_head(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched, other = make_trainer(qwen3), make_trainer(qwen3)
    tokens = counted(monkeypatch, "linear_logps")
    with patch_grpo(patched):
        one_loss(other)
        assert tokens == []
        one_loss(patched)
        assert len(tokens) == 1


def test_a_class_patches_its_new_trainers_until_undone(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import GRPOTrainer

    class Mine(GRPOTrainer):
        pass

    theirs = GRPOTrainer.__init__
    tokens = counted(monkeypatch, "linear_grpo_loss")
    with patch_grpo(Mine, loss="fused"):
        trainer = make_trainer(qwen3, trainer_class=Mine)
        plain = make_trainer(qwen3)
    assert "__init__" not in vars(Mine) and GRPOTrainer.__init__ is theirs
    after = make_trainer(qwen3, trainer_class=Mine)
    for each in (plain, after):
        one_loss(each)
    assert tokens == []
    one_loss(trainer)
    assert len(tokens) == 1


def test_generation_still_gets_logits(qwen3: Path) -> None:
    trainer = make_trainer(qwen3)
    ids = torch.tensor([[5, 6, 7]])
    exact = trainer.model(input_ids=ids).logits
    with patch_grpo(trainer):
        assert torch.equal(trainer.model(input_ids=ids).logits, exact)


def test_a_frozen_head_prepares_for_the_gradients_that_are_asked_for(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two GEMMs where the entropy is a metric; a bonus, or a loss we do not know, needs three."""
    from trl import GRPOTrainer

    class OwnLoss(GRPOTrainer):
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            return super()._compute_loss(model, inputs)

    prepared: list[tuple[str, ...]] = []
    real = TorchBackend.unit_gradients

    def unit_gradients(self: Any, problem: Any, outputs: tuple[str, ...]) -> Any:
        prepared.append(outputs)
        return real(self, problem, outputs)

    monkeypatch.setattr(TorchBackend, "unit_gradients", unit_gradients)
    for options in ({}, {"entropy_coef": 0.1}, {"trainer_class": OwnLoss}):
        trainer = make_trainer(qwen3, **options)
        trainer.model.lm_head.weight.requires_grad_(False)
        exact = one_loss(trainer)
        with patch_grpo(trainer, backend="torch"):
            ours = one_loss(trainer)
            ours.backward()
        assert float(ours) == pytest.approx(float(exact), abs=1e-6)
    assert prepared == [("logp",), ("logp", "entropy"), ("logp", "entropy")]


def test_a_loss_that_drifts_from_trls_ends_the_run(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polaris_kernels.adapters import trl_loss

    trainer = make_trainer(qwen3)
    patch_grpo(trainer, loss="fused")
    one_loss(trainer)
    rows = trl_loss.rows_of

    def shifted(*args: Any) -> Any:
        from dataclasses import replace

        made = rows(*args)
        return replace(made, advantages=made.advantages + 1.0)

    monkeypatch.setattr(trl_loss, "rows_of", shifted)
    with pytest.raises(RuntimeError, match="TRL's own"):
        one_loss(trainer)


@pytest.mark.parametrize(
    ("ours", "theirs", "agrees"),
    [
        (torch.nan, 0.3, False),
        (0.3, torch.nan, False),
        (torch.nan, torch.nan, True),
        (torch.inf, 0.3, False),
        (0.3, torch.inf, False),
        (-torch.inf, torch.inf, False),
        (torch.inf, torch.inf, True),
        (0.3, 0.3 + 1e-6, True),
        (0.3, 0.31, False),
    ],
)
def test_a_loss_that_is_not_a_number_agrees_with_its_like_alone(
    qwen3: Path, ours: float, theirs: float, agrees: bool
) -> None:
    trainer = make_trainer(qwen3)
    loss = FusedLoss(trainer, trl_head.HeadKernel(gather=nullcontext, options={}))
    inputs = {"advantages": torch.ones(2), "completion_mask": torch.ones(2, 3)}
    with nullcontext() if agrees else pytest.raises(RuntimeError, match="TRL's own"):
        loss._compare(torch.tensor(ours), torch.tensor(theirs), inputs)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"entropy_coef": 0.1}, "entropy_coef"),
        ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "importance_sampling"),
        ({"loss_type": "cispo", "epsilon_high": 0.28}, "epsilon_high"),
        ({"delta": 1.01}, "delta"),
    ],
)
def test_options_that_the_fused_loss_lacks_are_refused(
    qwen3: Path, options: dict[str, Any], word: str
) -> None:
    trainer = make_trainer(qwen3, **options)
    refuses_fused(trainer, word)


def refuses_fused(trainer: Any, word: str) -> None:
    forward = trainer.model.forward
    with pytest.raises(ValueError, match=f"{word}.*use loss='trl'"):
        patch_grpo(trainer, loss="fused")
    assert trainer.model.forward == forward
    patch_grpo(trainer).undo()


def test_the_fused_loss_is_refused_where_a_loss_scale_comes_behind_it(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(qwen3)
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "fp16")
    refuses_fused(trainer, "fp16")


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_rounding_of_terms_that_cancel_does_not_end_the_run(qwen3: Path, scale: float) -> None:
    trainer = make_trainer(qwen3, loss_type="luspo", importance_sampling_level="token")
    fused = FusedLoss(trainer, trl_head.HeadKernel(gather=nullcontext, options={}))
    inputs = {
        "advantages": torch.tensor([scale, -scale]), "completion_mask": torch.ones(2, 20_000)
    }  # fmt: skip
    terms = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 0.01 + scale
    ours = (terms.sum() - terms.flip(0).sum()) / 2
    # rows of 20,000 tokens that cancel: about what float32 keeps of the zero
    theirs = ours + 1e-7 * scale * 20_000
    fused._compare(ours, theirs, inputs)
    with pytest.raises(RuntimeError, match="TRL's own"):
        fused._compare(ours, ours + 1e-3 * scale * 20_000, inputs)


def test_bad_calls_name_the_remedy(qwen3: Path) -> None:
    trainer = make_trainer(qwen3)
    with pytest.raises(ValueError, match="loss='liger' is unknown; use one of trl, fused"):
        patch_grpo(trainer, loss="liger")
    with pytest.raises(ValueError, match="give a GRPOTrainer"):
        patch_grpo(trainer.model)
    patch = patch_grpo(trainer)
    with pytest.raises(ValueError, match="patched already"):
        patch_grpo(trainer)
    patch.undo()
    del trainer.model.forward
    with pytest.raises(ValueError, match="before train"):
        patch_grpo(trainer)


def test_an_adapted_head_is_refused(qwen3: Path) -> None:
    trainer = make_trainer(qwen3)
    trainer.model.lm_head.base_layer = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="adapter"):
        patch_grpo(trainer)


def test_a_trainer_with_its_own_loss_keeps_it(qwen3: Path) -> None:
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

    trainer = make_trainer(qwen3, trainer_class=GMPOTrainer, config_class=GMPOConfig)
    with pytest.raises(ValueError, match="GMPOTrainer has its own"):
        patch_grpo(trainer, loss="fused")


def test_outputs_that_the_head_lacks_are_refused() -> None:
    kernel = trl_head.HeadKernel(gather=lambda *_: None, options={})  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="is_top1"):
        kernel.apply(torch.zeros(1, 2), torch.zeros(3, 2), None, torch.zeros(1).long(), 1.0, 8,
                     outputs=("log_probs", "is_top1"))  # fmt: skip


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        ("1.15.2", False),
        ("1.16.0.dev1", True),
        ("1.16.0", True),
        ("1.16.7", True),
        ("1.17.0", False),
        ("main", False),
    ],
)
def test_versions_outside_the_tested_range_are_refused(
    monkeypatch: pytest.MonkeyPatch, version: str, accepted: bool
) -> None:
    monkeypatch.setitem(sys.modules, "trl", SimpleNamespace(__version__=version))
    monkeypatch.setitem(sys.modules, "trl.inside", SimpleNamespace(name="inside"))
    if accepted:
        assert TRL.load("trl.inside", "patch_grpo").name == "inside"
    else:
        with pytest.raises(ImportError, match=r"outside the tested range \(>= 1.16, < 1.17\)"):
            TRL.load("trl.inside", "patch_grpo")


def test_a_missing_host_is_named() -> None:
    with pytest.raises(
        ImportError, match=r'caller: no_such_host cannot be imported.*install "no_such'
    ):
        Host("no_such_host", (1, 0), (2, 3)).load("no_such_host", "caller")
    assert release("1.16.0.dev2") == (1, 16, 0) and release("main") == ()


def test_importing_every_adapter_imports_no_host() -> None:
    names = ("trl", "liger", "verl", "openrlhf", "packed")
    code = (
        "import sys, importlib, torch\n"
        f"for name in {names!r}: importlib.import_module('polaris_kernels.adapters.' + name)\n"
        "hosts = {'trl', 'liger_kernel', 'verl', 'openrlhf', 'transformers', 'accelerate'}\n"
        "print(sorted(hosts & {m.partition('.')[0] for m in sys.modules}))\n"
    )
    folder = str(Path(polaris_kernels.__file__).parents[1])
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                         env={"PYTHONPATH": folder, "PATH": "/usr/bin:/bin"})  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "[]"


def test_a_patch_of_a_trainer_that_has_trained_can_be_undone(qwen3: Path) -> None:
    trainer = make_trainer(qwen3, max_steps=2)
    patch = patch_grpo(trainer, loss="fused")
    Run(trainer)
    patch.undo()
    one_loss(trainer).backward()
