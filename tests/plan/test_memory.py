"""The memory model against what torch's allocator really handed out."""

from __future__ import annotations

from typing import Any

import pytest

from polaris_fast.config import Config
from polaris_fast.model.tiny import tiny_config
from polaris_fast.plan.hardware import this_cpu
from polaris_fast.plan.memory import memory_plan
from polaris_fast.plan.shapes import model_shape
from tests.plan.measured import peak_bytes, train_two_steps

SIZES: dict[str, Any] = {"hidden_size": 64, "num_layers": 4, "vocab_size": 1024}
MIXES = {"packed": [(20, 200), (10, 130), (30, 60)], "one long row": [(5, 500)]}
TRAINING = ("forward", "loss head", "backward", "optimizer")


def predicted_peak(family: Any, config: Config, sizes: dict[str, Any], rows: Any) -> int:
    shape = model_shape(tiny_config(family, **sizes), "tiny", "test")
    plan = memory_plan(config, shape, this_cpu(), rows)
    return max(phase.bytes for phase in plan.phases if phase.name in TRAINING)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["all saved", "recomputed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_5"])
def test_a_run_s_peak_is_predicted_within_ten_percent(
    family: str, dtype: str, checkpointing: bool, mix: str
) -> None:
    config = Config.model_validate({"dtype": dtype, "gradient_checkpointing": checkpointing})
    rows = MIXES[mix]
    measured = peak_bytes(lambda: train_two_steps(family, config, SIZES, rows))
    predicted = predicted_peak(family, config, SIZES, rows)
    assert predicted == pytest.approx(measured, rel=0.10)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all saved", "recomputed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_5"])
def test_adapters_are_predicted_too(family: str, dtype: str, checkpointing: bool) -> None:
    config = Config.model_validate(
        {"dtype": dtype, "gradient_checkpointing": checkpointing, "lora": {"r": 8}}
    )
    measured = peak_bytes(lambda: train_two_steps(family, config, SIZES, MIXES["packed"]))
    predicted = predicted_peak(family, config, SIZES, MIXES["packed"])
    assert predicted == pytest.approx(measured, rel=0.10)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5"])
def test_selective_checkpointing_is_predicted_too(family: Any) -> None:
    config = Config(dtype="bfloat16", gradient_checkpointing="selective")
    rows = MIXES["packed"]
    measured = peak_bytes(lambda: train_two_steps(family, config, SIZES, rows))
    assert predicted_peak(family, config, SIZES, rows) == pytest.approx(measured, rel=0.1)
    for other, sign in ((False, 1), (True, -1)):
        changed = config.model_copy(update={"gradient_checkpointing": other})
        assert sign * predicted_peak(family, changed, SIZES, rows) > 1.02 * sign * measured


def test_eight_bit_moments_are_predicted_too() -> None:
    pytest.importorskip("bitsandbytes")
    sizes = SIZES | {"hidden_size": 256}  # weights are what counts
    config = Config(dtype="bfloat16", optim="adamw_8bit")
    rows = [(5, 20)]
    measured = peak_bytes(lambda: train_two_steps("qwen3", config, sizes, rows))
    plain = config.model_copy(update={"optim": "adamw_torch"})
    assert measured < 0.9 * predicted_peak("qwen3", plain, sizes, rows)
    assert predicted_peak("qwen3", config, sizes, rows) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5"])
def test_tiled_mlps_are_predicted_too(family: Any) -> None:
    config = Config(dtype="float32", gradient_checkpointing=True, mlp_tile_tokens=64)
    sizes = SIZES | {"intermediate_size": 1024}
    measured = peak_bytes(lambda: train_two_steps(family, config, sizes, MIXES["packed"]))
    assert predicted_peak(family, config, sizes, MIXES["packed"]) == pytest.approx(
        measured, rel=0.1
    )
    whole = config.model_copy(update={"mlp_tile_tokens": 0})
    assert measured < 0.9 * predicted_peak(family, whole, sizes, MIXES["packed"])
