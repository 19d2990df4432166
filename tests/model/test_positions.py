"""Rows longer than a model's positions are an error before its weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, Mamba2Config

from polaris_fast.model.positions import check_positions
from polaris_fast.model.tiny import tiny_config
from polaris_fast.types import UserError


def folder_of(config: Any, folder: Path) -> str:
    """A model's folder without weights."""
    config.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ["qwen3_5", "llama", "gpt2"])
def test_rows_longer_than_the_models_positions_are_refused(family: Any, tmp_path: Path) -> None:
    config: Any = GPT2Config(n_positions=64)
    if family != "gpt2":
        config = tiny_config(family, max_position_embeddings=64)
    path = folder_of(config, tmp_path)
    assert check_positions(path, 64, lambda: pytest.fail("not asked")) is None
    assert check_positions(path, 900, lambda: 64) is None
    with pytest.raises(UserError, match=r"max_completion_length: rows can be 65 tokens .* for 64 "):
        check_positions(path, 900, lambda: 65)


def test_where_scaled_rotary_embeddings_may_reach_further_it_is_a_warning(tmp_path: Path) -> None:
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    config = tiny_config("qwen3", max_position_embeddings=64, rope_scaling=scaled)
    words = check_positions(folder_of(config, tmp_path), 900, lambda: 200)
    assert words is not None and "scaled rotary embedding must reach as far" in words


def test_a_model_without_such_a_limit_takes_any_row(tmp_path: Path) -> None:
    path = folder_of(Mamba2Config(), tmp_path)
    assert check_positions(path, 10**6, lambda: 10**6) is None
