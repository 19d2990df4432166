"""The shape of the repository: imports go one way, and no folder shadows an installed package."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = {".py", ".md", ".toml", ".yaml", ".sh"}
# What each stage may import of the others: a row never walks back.
STAGES = (
    "types", "config", "config_file", "data", "prompts", "groups", "rollout", "judge", "rewards",
    "scoring", "batch", "in_flight", "advantages", "packing", "model", "engine", "slots", "step",
    "writing_ahead", "step_metrics", "rollout_parity", "evaluate", "ranks", "session", "trainer",
    "sft",
)  # fmt: skip


def _imports(path: Path) -> set[str]:
    """Absolute dotted names of everything a file imports, at any depth."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            found.add(".".join(part for part in (base, node.module or "") if part))
    return found


def _tracked() -> list[str]:
    """Tracked files, and new ones that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def _stage(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "polaris_fast" and len(parts) > 1 else None


def test_no_stage_imports_a_later_one() -> None:
    backwards = []
    for path in (ROOT / "polaris_fast").rglob("*.py"):
        own = path.relative_to(ROOT / "polaris_fast").parts[0].removesuffix(".py")
        for name in _imports(path):
            other = _stage(name)
            if own in STAGES and other in STAGES and STAGES.index(other) > STAGES.index(own):
                backwards.append(f"{path.relative_to(ROOT)} imports {name}")
    # The packed layout is a value that both packing and the model's forward are written in.
    allowed = {"polaris_fast/packing.py imports polaris_fast.model.layout"}
    assert set(backwards) <= allowed


def test_the_kernels_never_import_the_trainer() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not any(name.startswith("polaris_fast") for name in _imports(path)), path


def test_top_level_folders_are_the_fixed_ones_and_kernels_is_no_package() -> None:
    folders = {name.split("/")[0] for name in _tracked() if "/" in name and name[0] != "."}
    assert folders == {
        "polaris_fast", "kernels", "csrc", "benchmarks", "tests", "docs",
    }  # fmt: skip
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.slow
def test_transformers_and_hugging_faces_kernels_import_from_the_checkout_root() -> None:
    """A folder without `__init__.py` never wins over a package, wherever each is on the path."""
    code = (
        "import kernels, transformers, polaris_kernels\n"
        "from transformers import Qwen3_5ForCausalLM\n"
        "from kernels import get_kernel\n"
        "print(kernels.__file__)\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "site-packages" in done.stdout


def test_the_repository_speaks_of_itself_alone() -> None:
    """No absolute home or root paths in tracked text."""
    tracked = [ROOT / name for name in _tracked() if Path(name).suffix in TEXT]
    own = Path(__file__).resolve()
    forbidden = ("/" + "root/", "/" + "home/", "pypi" + ".org")
    for path in tracked:
        if path != own and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not any(word in text for word in forbidden), path
