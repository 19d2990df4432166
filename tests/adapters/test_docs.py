"""The diffs on the adapters' pages: what a user has after making them runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polaris_kernels.adapters import liger, openrlhf, verl
from polaris_kernels.adapters.packed import PackedHead

from .test_packed import FusedOutputLinear
from .trl_rig import make_trainer, reward

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("trl", "liger", "verl", "openrlhf", "packed")
B, L, D, V = 2, 5, 8, 40


def blocks(page: str, kind: str = "diff") -> list[str]:
    path = DOCS / f"{page}.md"
    if not path.is_file():
        pytest.skip("no checkout: documents are not installed")
    return re.findall(rf"^```{kind}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def after(diff: str) -> str:
    """The code with the diff made."""
    lines = [line[1:] for line in diff.splitlines() if not line.startswith("-")]
    return "\n".join(lines) + "\n"


def run(page: str, number: int, names: dict[str, Any]) -> dict[str, Any]:
    source = after(blocks(page)[number])
    exec(compile(source, f"docs/{page}.md", "exec"), names)
    return names


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> ModuleType:
    """A module of a project that is not installed, and the packages around it."""
    parent = None
    for end in range(1, name.count(".") + 2):
        part = ".".join(name.split(".")[:end])
        module = ModuleType(part)
        monkeypatch.setitem(sys.modules, part, module)
        if parent is not None:
            setattr(parent, part.rpartition(".")[2], module)
        parent = module
    assert parent is not None
    for key, value in attributes.items():
        setattr(parent, key, value)
    return parent


@pytest.mark.parametrize("page", PAGES)
def test_diffs_are_short_and_parse_before_and_after(page: str) -> None:
    for diff in blocks(page):
        changed = [line for line in diff.splitlines() if line[:1] in ("+", "-")]
        assert 1 <= len(changed) <= 10
        before = "\n".join(line[1:] for line in diff.splitlines() if line[:1] != "+")
        for source in (before, after(diff)):
            compile(source, f"docs/{page}.md", "exec")


def test_every_page_is_linked_from_the_readme_and_filled_in() -> None:
    readme = (DOCS.parent / "README.md").read_text()
    for page in PAGES:
        assert f"docs/{page}.md" in readme
        assert not re.findall(r"@[A-Z_0-9]+@", (DOCS / f"{page}.md").read_text())


@pytest.mark.filterwarnings("ignore")
def test_trl(qwen3: Path) -> None:
    pytest.importorskip("trl")
    made = make_trainer(qwen3, max_steps=1)
    names = {
        "model": str(qwen3), "reward": reward, "args": made.args, "dataset": made.train_dataset
    }  # fmt: skip
    trainer = run("trl", 0, names)["trainer"]
    assert trainer.state.global_step == 1
    assert hasattr(trainer, "_polaris_patch")


def test_liger() -> None:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, L, D, generator=g, requires_grad=True)
    logits = torch.randn(B, L + 1, V, generator=g, requires_grad=True)
    names: dict[str, Any] = {
        "hidden": hidden,
        "weight": torch.randn(V, D, generator=g, requires_grad=True),
        "logits": logits * 1.0,
        "ids": torch.randint(V, (B, L), generator=g),
        "mask": torch.ones(B, L),
        "advantages": torch.tensor([1.0, -1.0]),
        "old": torch.full((B, L), -3.7),
    }
    assert isinstance(run("liger", 0, names)["loss_module"], liger.LigerFusedLinearGRPOLoss)
    run("liger", 1, names)
    assert all(names[x].grad.abs().sum() > 0 for x in ("hidden", "weight"))
    assert logits.grad is not None and logits.grad[:, :-1].abs().sum() > 0


def test_verl(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_module(
        monkeypatch, "verl.utils.kernel.linear_cross_entropy", linear_cross_entropy=None
    )
    run("verl", 0, {})
    # as verl's models do, inside of their forward
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    assert linear_cross_entropy is verl.linear_cross_entropy is module.linear_cross_entropy


def test_openrlhf(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = fake_module(monkeypatch, "openrlhf.models.actor", log_probs_from_logits=None)
    run("openrlhf", 0, {})
    assert actor.log_probs_from_logits is openrlhf.log_probs_from_logits

    embedding = nn.Embedding(V, D)
    ids = torch.randint(V, (B, L))

    def backbone(sequences: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=embedding(sequences))

    head = nn.Linear(D, V, bias=False)
    names: dict[str, Any] = {
        "model": SimpleNamespace(model=backbone, lm_head=head),
        "sequences": ids, "attention_mask": torch.ones_like(ids),
        "rolled": ids.roll(-1, 1), "temperature": 0.7,
    }  # fmt: skip
    logps = run("openrlhf", 1, names)["logps"]
    exact = openrlhf.log_probs_from_logits(head(embedding(ids)), names["rolled"], 0.7)
    torch.testing.assert_close(logps, exact)


def test_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(lm_head=nn.Linear(D, V, bias=False))
    weight = model.lm_head.weight

    def inject(model: Any, chunk_size: int) -> None:
        model.lm_head = FusedOutputLinear(D, V, chunk_size)
        model.lm_head.weight = weight

    names: dict[str, Any] = {"model": model, "inject_prime_lm_head": inject}
    run("packed", 0, names)
    assert isinstance(model.lm_head, PackedHead) and model.lm_head.weight is weight
    (source,) = blocks("packed", "python")
    exec(compile(source, "docs/packed.md", "exec"), names)
    assert names["found"].logps.shape == (7,) and names["padded"].logps.shape == (2, 4)
    assert names["hidden"].grad.abs().sum() > 0
