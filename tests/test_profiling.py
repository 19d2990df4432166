"""The profiler switch on a real run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from polaris_fast.config import Config
from tests.runs import train


def test_only_the_steps_asked_for_leave_a_trace_and_a_table(tmp_path: Path) -> None:
    run = tmp_path / "run"
    few = {"prompts_per_step": 1, "max_completion_length": 56}
    assert train(run, profile__steps="[2]", **few) == 0
    folder = run / "profile"
    assert {path.name for path in folder.iterdir()} == {"step-2.json.gz", "step-2.txt"}
    with gzip.open(folder / "step-2.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    assert any("mm" in str(event.get("name")) for event in events)
    phases = (folder / "step-2.txt").read_text().splitlines()[1:7]
    shares = {line.split()[0]: float(line.split()[1]) for line in phases if "%" in line}
    assert {"rollout", "train", "optimizer"} <= shares.keys()
    total = float((folder / "step-2.txt").read_text().split()[2])
    assert sum(shares.values()) == pytest.approx(total, abs=0.01)


def test_steps_count_from_one() -> None:
    with pytest.raises(ValueError, match=r"profile\.steps"):
        Config.model_validate({"profile": {"steps": [0]}})
