"""The profiler switch: only the steps asked for, a trace that opens, a table that adds up."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from polaris_fast.config import Config, ProfileConfig
from polaris_fast.metrics import PhaseClock
from polaris_fast.profiling import profiled


def step() -> Any:
    clock = PhaseClock()
    with clock.phase("rollout"):
        torch.ones(8, 8) @ torch.ones(8, 8)
    with clock.phase("train"):
        torch.ones(64, 64).softmax(-1)
    return SimpleNamespace(clock=clock)


def test_other_steps_run_without_a_trace(tmp_path: Path) -> None:
    assert profiled(ProfileConfig(steps=[2]), tmp_path, 1, step).clock is not None
    assert not list(tmp_path.iterdir())


def test_a_step_leaves_a_trace_and_a_table(tmp_path: Path) -> None:
    result = profiled(ProfileConfig(steps=[2]), tmp_path, 2, step)
    with gzip.open(tmp_path / "profile/step-2.json.gz", "rt") as file:
        names = {str(event.get("name")) for event in json.load(file)["traceEvents"]}
    assert {"aten::mm", "aten::softmax"} <= names
    text = (tmp_path / "profile/step-2.txt").read_text()
    assert "aten::mm" in text
    lines = [line.split() for line in text.splitlines() if line.endswith("%")]
    shares = {line[0]: float(line[-1].rstrip("%")) for line in lines if len(line) == 4}
    assert shares.keys() == {"rollout", "train", "other"}
    assert sum(shares.values()) == pytest.approx(100, abs=0.3)
    assert result.clock.seconds("train") > 0


def test_steps_count_from_one() -> None:
    with pytest.raises(ValueError, match=r"profile\.steps"):
        Config.model_validate({"profile": {"steps": [0]}})
