"""Optimizers that take less memory: 8-bit moments, and masters that live in CPU memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("pydantic")  # the GPU tests also run on machines with torch and pytest alone

from polaris_fast.config import Config, EngineConfig
from polaris_fast.engine import SingleEngine
from polaris_fast.model.load import load_causal_lm, prepare_model
from polaris_fast.model.tiny import tiny_model
from polaris_fast.packing import pack_rows
from polaris_fast.ranks.parts import check_engine
from polaris_fast.ranks.world import World
from polaris_fast.types import UserError
from polaris_kernels import LossRows

OFFLOADED = {"engine": {"offload_optimizer": True}}
EIGHT_BITS = {"optim": "adamw_8bit"}
CPU = torch.device("cpu")


def config_of(settings: dict[str, Any], dtype: str = "float32") -> Config:
    fixed = {"dtype": dtype, "learning_rate": 1e-3, "weight_decay": 0.01}
    return Config.model_validate(fixed | settings)


def engine_of(config: Config, folder: Path | None = None, device: str = "cpu") -> SingleEngine:
    """A new engine, or one that goes on from a checkpoint."""
    dtype = getattr(torch, config.dtype)
    model: Any
    if folder is None:
        model = prepare_model(tiny_model("qwen3", dtype=dtype).to(device))
    else:
        model = load_causal_lm(folder, dtype=dtype, device=device)
    engine = SingleEngine(model, config, config.loss_spec(), total_updates=8)
    if folder is not None:
        engine.load(folder)
    return engine


def train(engine: SingleEngine, steps: range) -> None:
    """One update a step, of two micro-batches with a seed of their own."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for _ in range(2):
            ids = torch.randint(3, 1000, (2, 12), generator=generator).tolist()
            rows = [SimpleNamespace(prompt_ids=row[:3], completion_ids=row[3:]) for row in ids]
            batch = pack_rows(rows, engine.device)
            loss_rows = LossRows(
                row_of_token=batch.target_row,
                num_rows=2,
                advantages=torch.tensor([1.0, -0.5], device=engine.device),
                is_human=torch.zeros(2, dtype=torch.bool, device=engine.device),
                denominator=36.0,
            )
            engine.backward(batch, loss_rows)
        engine.update(1.0)


def weights(engine: SingleEngine) -> torch.Tensor:
    return torch.cat([p.detach().float().cpu().ravel() for p in engine.model.parameters()])


def check_exact_resume(config: Config, folder: Path) -> None:
    whole = engine_of(config)
    train(whole, range(4))
    first = engine_of(config)
    train(first, range(2))
    first.save(folder)
    resumed = engine_of(config, folder)
    train(resumed, range(2, 4))
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masters_elsewhere_take_gradients_and_update_with_them(dtype: str, tmp_path: Path) -> None:
    moved, plain = engine_of(config_of(OFFLOADED, dtype)), engine_of(config_of({}, dtype))
    own = {p.data_ptr() for p in moved.model.parameters()}
    assert not own & {m.data_ptr() for m in moved.weights.masters}
    before = weights(moved)
    train(moved, range(2))
    train(plain, range(2))
    assert all(p.grad is None for p in moved.model.parameters())
    change = weights(plain) - before
    assert change.norm() > 0
    assert (weights(moved) - weights(plain)).norm() < 1e-4 * change.norm()
    check_exact_resume(config_of(OFFLOADED, dtype), tmp_path)


@pytest.mark.gpu
def test_a_gpu_keeps_the_model_alone() -> None:
    config = config_of(OFFLOADED, "bfloat16")
    engine = engine_of(config, device="cuda")
    train(engine, range(2))
    assert {m.device.type for m in engine.weights.masters} == {"cpu"}
    plain = engine_of(config_of({}, "bfloat16"))
    train(plain, range(2))
    change = weights(plain) - weights(engine_of(config))
    assert (weights(engine) - weights(plain)).norm() < 0.1 * change.norm()


def test_eight_bit_moments_update_like_whole_ones(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = config_of(EIGHT_BITS)
    engine, plain = engine_of(config), engine_of(config_of({}))
    before = weights(engine)
    train(engine, range(4))
    train(plain, range(4))
    change = weights(plain) - before
    assert 0 < (weights(engine) - weights(plain)).norm() < 0.1 * change.norm()
    largest = max(engine.weights.masters, key=torch.Tensor.numel)
    moments = engine.optimizer.state[largest]
    assert {moments[name].dtype for name in ("state1", "state2")} == {torch.uint8}
    check_exact_resume(config, tmp_path)


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"optim: 'adamw_8bit' needs.*polaris-fast\[8bit\]"):
        check_engine(config_of(EIGHT_BITS), CPU, World())


@pytest.mark.parametrize(
    ("engine", "match"),
    [
        ({"kind": "deepspeed"}, "DeepSpeed cuts"),
        ({"offload_optimizer": True}, "engine.offload_optimizer to false"),
    ],
)
def test_eight_bits_where_they_gain_nothing_are_refused(engine: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        config_of(EIGHT_BITS | {"engine": engine})


@pytest.mark.parametrize(
    ("device", "size", "match"), [("cpu", 1, "the device is the CPU"), ("cuda", 2, "2 processes")]
)
def test_offloading_that_cannot_be_is_refused_at_the_start(
    device: str, size: int, match: str
) -> None:
    with pytest.raises(UserError, match=rf"engine\.offload_optimizer: {match}"):
        check_engine(config_of(OFFLOADED), torch.device(device), World(size=size))
    check_engine(config_of(OFFLOADED), torch.device("cuda"), World())


def test_offloaded_weights_need_deepspeed() -> None:
    refused: Callable[..., Any] = EngineConfig
    with pytest.raises(ValueError, match="offload_param needs kind deepspeed, got replicated"):
        refused(zero_stage=3, offload_param=True)


def test_a_deepspeed_file_is_read_before_anything_else(tmp_path: Path) -> None:
    missing = str(tmp_path / "zero.json")
    config = config_of({"engine": {"kind": "deepspeed", "deepspeed_config": missing}})
    with pytest.raises(UserError, match=r"engine\.deepspeed_config: cannot read .*zero\.json"):
        check_engine(config, CPU, World())
    Path(missing).write_text('{"gradient_accumulation_steps": 4}')
    with pytest.raises(UserError, match=r"gradient_accumulation_steps is 4"):
        check_engine(config, CPU, World())


def test_a_deepspeed_file_without_deepspeed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"deepspeed_config \(zero\.json\) needs kind deepspeed"):
        config_of({"engine": {"deepspeed_config": "zero.json"}})


def test_a_checkpoint_of_another_engine_is_refused(tmp_path: Path) -> None:
    """One that was copied without its run's configuration, say."""
    config = config_of({})
    engine = engine_of(config)
    engine.save(tmp_path)
    (tmp_path / "engine.pt").unlink()
    with pytest.raises(UserError, match=r"holds no engine\.pt, so engine\.kind replicated"):
        engine.load(tmp_path)


def test_warm_up_steps_that_the_schedule_would_ignore_are_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup_steps \(20\).*to constant_with_warmup"):
        config_of({"warmup_steps": 20})
    config = config_of({"warmup_steps": 20, "lr_scheduler_type": "constant_with_warmup"})
    assert engine_of(config).learning_rate == 0.0
