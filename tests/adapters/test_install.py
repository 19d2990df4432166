"""The core alone: what installing it pulls in, and what it does where something is missing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import polaris_kernels

ROOT = Path(__file__).parents[2]
CORE = {"torch", "triton", "numpy"}
PARTS = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "csrc",
         "kernels", "polaris_fast")  # fmt: skip
# what other trainers bring, and this project's own: hidden as if it were not installed
OTHERS = ("transformers", "trl", "accelerate", "datasets", "peft", "liger_kernel", "deepspeed",
          "verl", "openrlhf", "pydantic", "yaml", "polaris_fast")  # fmt: skip
HIDE = """
import sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            return None
        return self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hiding, sys.meta_path)
"""


def requirements(metadata: str) -> dict[str, str]:
    """Name -> the rest of the line, of the requirements that no extra has to ask for."""
    lines = re.findall(r"^Requires-Dist: ([\w.-]+)(.*)$", metadata, re.MULTILINE)
    return {name.lower(): rest for name, rest in lines if "extra ==" not in rest}


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the build backend writes into a wheel of this tree."""
    if not (ROOT / "setup.py").is_file():
        pytest.skip("no checkout: nothing to build from")
    tree = tmp_path_factory.mktemp("tree")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=skip)
        else:
            shutil.copy(ROOT / name, tree / name)
    code = "from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel('made')"
    (tree / "made").mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = (tree / "made").rglob("METADATA")
    return found.read_text()


def test_installing_the_core_asks_for_torch_triton_and_numpy_alone(metadata: str) -> None:
    found = requirements(metadata)
    assert found.keys() == CORE
    assert "linux" in found["triton"], "elsewhere there is no Triton: torch and C++ do the work"


def test_a_wheel_brings_both_packages_and_no_other(metadata: str) -> None:
    assert re.search(r"^Name: polaris-fast$", metadata, re.MULTILINE)
    assert not (ROOT / "kernels" / "__init__.py").exists()


def alone(code: str, *hidden: str, path: Path | None = None) -> list[str]:
    """Lines printed by code in a fresh process with modules hidden and no compiler on its path."""
    source = HIDE.format(names=set(hidden)) + textwrap.dedent(code)
    folder = path or Path(polaris_kernels.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(folder), "PATH": "/nowhere", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_without_any_trainer_adapters_import_and_name_what_they_need() -> None:
    found = alone(
        """
        import torch
        from polaris_kernels.adapters import liger, openrlhf, packed, trl, verl
        hidden, weight = torch.randn(3, 4), torch.randn(9, 4)
        print(verl.linear_cross_entropy(hidden, weight, torch.arange(3))[0].shape)
        try:
            trl.patch_grpo(object())
        except ImportError as error:
            print(error)
        """,
        *OTHERS,
    )
    assert found[0] == "torch.Size([3])"
    assert found[1].startswith("patch_grpo: trl cannot be imported")
    assert found[1].endswith('install "trl >= 1.16, < 1.17"')


def test_each_absence_is_named_where_it_matters(tmp_path: Path) -> None:
    """No Triton, no compiled library, no GPU: torch computes, and who asks for more is told."""
    package = Path(polaris_kernels.__file__).parent
    skip = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(package, tmp_path / "polaris_kernels", ignore=skip)
    found = alone(
        """
        import torch, polaris_kernels as pk
        print(pk.active_backend("cpu"), *pk.available_backends())
        hidden, weight = torch.randn(3, 4), torch.randn(9, 4)
        for name in (None, "native", "triton"):
            try:
                print(pk.linear_logps(hidden, weight, torch.arange(3), backend=name).logps.shape)
            except ValueError as error:
                print(error)
        """,
        "triton",
        *OTHERS,
        path=tmp_path,
    )
    assert found[:2] == ["torch torch", "torch.Size([3])"]
    assert "'native', which is not available here; available: torch; build it with" in found[2]
    assert "'triton', which is not available here; available: torch" in found[3]


def test_it_is_vendorable(tmp_path: Path) -> None:
    """Relative imports only: a copy under another name, inside another package, works."""
    home = tmp_path / "host" / "third_party"
    home.mkdir(parents=True)
    for folder in (home, home.parent):
        (folder / "__init__.py").write_text("")
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(polaris_kernels.__file__).parent, home / "head", ignore=skip)
    found = alone(
        """
        import sys, torch
        from host.third_party.head import linear_logps
        from host.third_party.head.adapters import liger, openrlhf, packed, trl, verl
        print(linear_logps(torch.randn(3, 4), torch.randn(9, 4), torch.arange(3)).logps.shape)
        print([m for m in sys.modules if m.startswith("polaris")])
        """,
        "polaris_kernels",
        path=tmp_path,
    )
    assert found == ["torch.Size([3])", "[]"]
