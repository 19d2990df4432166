"""Counts from a config alone against the model that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polaris_fast.config import Config, LoraConfig
from polaris_fast.model.lora import Adapters
from polaris_fast.model.tiny import tiny_config, tiny_model
from polaris_fast.packing import RowCost
from polaris_fast.plan.sample import trained_parameters
from polaris_fast.plan.shapes import model_shape, shape_of_run
from polaris_fast.plan.timing import row_cost
from polaris_fast.types import UserError


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_5", "llama"])
def test_counts_are_those_of_the_loaded_model(family: Any, tied: bool) -> None:
    model: Any = tiny_model(family, tie_word_embeddings=tied)
    shape = model_shape(tiny_config(family, tie_word_embeddings=tied), "tiny", "test")
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())
    assert shape.largest_parameter == max(p.numel() for p in model.parameters())
    assert shape.head_parameters == model.lm_head.weight.numel()


def test_a_row_costs_what_the_trainer_balances_by() -> None:
    shape = model_shape(tiny_config("qwen3"), "tiny", "test")
    assert row_cost(shape) == RowCost.of_model(tiny_model("qwen3"))


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5"])
def test_adapters_are_counted_as_peft_makes_them(family: Any) -> None:
    config = Config(dtype="bfloat16", lora=LoraConfig(r=4))
    model: Any = tiny_model(family, num_layers=8)
    Adapters(model, config.lora)
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    found = trained_parameters(config, model_shape(tiny_config(family, num_layers=8), "", ""))
    assert (found.elements, found.largest) == (sum(trained), max(trained))


def test_the_paper_s_model_has_its_published_size() -> None:
    shape = shape_of_run(Config(model_name_or_path="Qwen/Qwen3.5-9B"))
    assert shape.num_parameters == pytest.approx(8.954e9, rel=1e-4)
    assert shape.layer_kinds.count("full_attention") == 8 == len(shape.layer_kinds) // 4


def test_a_model_that_is_not_here_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model_name_or_path.*downloads nothing"):
        shape_of_run(Config(model_name_or_path="nobody/no-such-model"))
    with pytest.raises(UserError, match=r"model_name_or_path.*no config\.json"):
        shape_of_run(Config(model_name_or_path=str(tmp_path)))
