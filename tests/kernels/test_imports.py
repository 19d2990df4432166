"""The drop-in imports torch, triton, numpy and the standard library, and little at import."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import polaris_kernels

PACKAGE = Path(polaris_kernels.__file__).parent
ALLOWED = {"torch", "triton", "numpy", *sys.stdlib_module_names}


def imported_names(path: Path) -> set[str]:
    """Top-level packages that a file imports absolutely."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_only_allowed_packages_are_imported(path):
    assert imported_names(path) <= ALLOWED


def test_the_folder_around_it_is_no_package():
    assert not (PACKAGE.parent / "__init__.py").exists()


def test_importing_it_is_lean():
    code = (
        "import sys, time, torch; before = set(sys.modules); start = time.perf_counter();"
        "import polaris_kernels; spent = time.perf_counter() - start;"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "print(spent); print(' '.join(sorted(new)))"
    )
    start = time.perf_counter()
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin"},
    ).stdout.splitlines()
    assert time.perf_counter() - start < 60
    assert float(out[0]) < 2.0
    assert set(out[1].split()) <= ALLOWED | {"polaris_kernels"}
    assert "triton" not in out[1].split()


def test_all_names_in_the_public_api_exist():
    for name in polaris_kernels.__all__:
        assert hasattr(polaris_kernels, name)
