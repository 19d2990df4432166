"""The code in the documentation runs as it stands."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


def blocks(name: str) -> list[str]:
    """The Python blocks of a Markdown file, in order."""
    path = ROOT / name
    if not path.is_file():
        pytest.skip("no checkout: documents are not installed")
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_on_the_kernels_runs_from_top_to_bottom():
    torch.manual_seed(0)
    found = blocks("docs/kernels.md")
    names: dict[str, Any] = {}
    for block in found:
        exec(compile(block, "docs/kernels.md", "exec"), names)
    assert len(found) == 6
    assert names["hidden"].grad.isfinite().all() and names["hidden"].grad.abs().sum() > 0
    assert names["kl"].loss > 0 and names["logits"].shape == (24, 100)


def test_the_first_example_of_the_readme_makes_gradients():
    model = SimpleNamespace(lm_head=torch.nn.Linear(16, 50))
    weight = model.lm_head.weight
    names: dict[str, Any] = {
        "model": model,
        "hidden": torch.randn(12, 16, requires_grad=True),
        "targets": torch.arange(12),
        "row_of_token": torch.arange(12) // 6,
        "R": 2,
        "advantages": torch.tensor([1.0, -1.0]),
        "old_logps": torch.full((12,), -4.0),
    }
    exec(compile(blocks("README.md")[0], "README.md", "exec"), names)
    assert weight.grad.abs().sum() > 0 and names["hidden"].grad.abs().sum() > 0
