"""Shared fixtures. Without a GPU Triton runs in its interpreter; it reads that at import."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

# One thread: small tensors gain nothing from more, sums stay in one order in this process and its
# children, and a machine busy with something else does not stall at every barrier.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are reported as skipped where torch finds no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device: run `make gpu` on one")
    for item in items:
        # not item.keywords, which hold the names of folders too
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def no_kernels_are_chosen() -> Iterator[None]:
    """A training run chooses kernels for its whole process; here other tests come after it."""
    yield
    choice = sys.modules.get("polaris_fast.model.kernel_choice")
    if choice is not None:
        choice.choose("attention", None)
        choice.choose("delta_net", None)
