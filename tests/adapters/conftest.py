"""Models on disk that the tests of the TRL adapter load."""

from __future__ import annotations

from pathlib import Path

import pytest

from .trl_rig import save_model


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="session")
def qwen3_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("qwen3_5"), "qwen3_5")
