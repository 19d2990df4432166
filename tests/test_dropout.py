"""Dropout draws from streams of (seed, step, rank), so that a resumed run repeats it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from polaris_fast.config import Config
from polaris_fast.engine import SingleEngine
from polaris_fast.model.load import prepare_model
from polaris_fast.model.lora import Adapters
from polaris_fast.model.tiny import tiny_model
from polaris_fast.slots import SlotTrainer
from polaris_fast.types import Row, RowKind, StoryRecord

SETTINGS: dict[str, Any] = {"dtype": "float32", "learning_rate": 0.1, "num_iterations": 2}

RECORD = StoryRecord(uid="a", prompt="p", target_word_count=9)


def slots_of(checkpoint: Path | None = None, *, rank: int = 0, seed: int = 0) -> SlotTrainer:
    """A tiny model with dropout of its own, in attention."""
    model: Any = prepare_model(tiny_model("llama", attention_dropout=0.5))
    config = Config.model_validate(SETTINGS | {"seed": seed})
    engine = SingleEngine(model, config, config.loss_spec(), total_updates=8)
    if checkpoint is not None:
        model.load_state_dict(torch.load(checkpoint / "weights.pt"))
        engine.load(checkpoint)
    return SlotTrainer(engine, config, rank)


def adapted_slots(checkpoint: Path | None = None) -> SlotTrainer:
    """The same with LoRA's dropout."""
    model: Any = prepare_model(tiny_model("llama"))
    lora = {"r": 4, "dropout": 0.5}
    config = Config.model_validate(SETTINGS | {"lora": lora})
    torch.manual_seed(0)
    adapters = Adapters(model, config.lora)
    engine = SingleEngine(model, config, config.loss_spec(), total_updates=8, adapters=adapters)
    if checkpoint is not None:
        engine.load(checkpoint)
    return SlotTrainer(engine, config)


def step(slots: SlotTrainer) -> float:
    """One step of two updates; the second pass's sum of log-probs."""
    for n in range(2):
        row = Row(f"0/{n}/0", n, 0, RowKind.HUMAN, RECORD, [5, 6, 7], list(range(9, 19)))
        row.advantage = 1.0
        slots.first_pass([[row]], 20.0)
    slots.update(1.0)
    slots.take_sums()
    slots.again(20.0)
    found = float(slots.take_sums().loss["sum_logp"])
    slots.update(1.0)
    slots.end_step()
    return found


@pytest.mark.parametrize("make", [slots_of, adapted_slots])
def test_a_resumed_run_draws_the_same_dropout(make: Any, tmp_path: Path) -> None:
    if make is adapted_slots and find_spec("peft") is None:
        pytest.skip("needs peft")
    whole = make()
    step(whole)
    whole.save(tmp_path)
    torch.save(whole.engine.model.state_dict(), tmp_path / "weights.pt")
    torch.rand(3)  # what else a process may have drawn meanwhile
    expected = [step(whole), step(whole)]
    assert expected[0] != expected[1]
    resumed = make(tmp_path)
    assert [step(resumed), step(resumed)] == expected


def test_an_abandoned_step_leaves_no_trace_in_the_next() -> None:
    slots = slots_of()
    row = Row("0/0/0", 0, 0, RowKind.HUMAN, RECORD, [5, 6], [7, 8])
    slots.first_pass([[row]], 2.0)
    slots.end_step()
    assert step(slots) == step(slots_of())


def test_ranks_and_seeds_draw_their_own_dropout() -> None:
    found = {step(slots_of()), step(slots_of(rank=1)), step(slots_of(seed=1))}
    assert len(found) == 3
