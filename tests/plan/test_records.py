"""What the data settles for a plan, as it does for a run, and nothing that is not here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from polaris_fast.cli import main
from polaris_fast.config import Config
from polaris_fast.model.tiny import tiny_config
from polaris_fast.plan.assumptions import Assumptions
from polaris_fast.plan.build import make_plan
from polaris_fast.plan.hardware import parse_gpus
from polaris_fast.plan.lengths import TOKENS_PER_WORD
from polaris_fast.plan.records import local_records, settled

STORY, REASONING = 400, 2000  # words


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the planner downloads nothing")

    monkeypatch.setattr(datasets, "load_dataset", refuse)


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_config("qwen3_5", num_layers=4).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def write(path: Path, num: int, *, reasoning: int | None = REASONING, story: int = STORY) -> str:
    thought = {} if reasoning is None else {"reasoning": "plan " * reasoning}
    lines = [
        {"uid": f"{path.stem}{i}", "prompt": f"p {i}", "story": f"{path.stem}{i} " * story}
        for i in range(num)
    ]
    path.write_text("".join(json.dumps(line | thought) + "\n" for line in lines))
    return str(path)


def config_of(**data: Any) -> Config:
    return Config.model_validate({"data": data, "max_completion_length": None})


def limit_of(config: Config) -> int | None:
    return settled(config, local_records(config), Assumptions())[0].max_completion_length


def test_thinking_left_to_the_data_is_planned_as_the_run_settles_it(
    model: str, tmp_path: Path
) -> None:
    plans = [
        make_plan(
            Config.model_validate({"model_name_or_path": model, "data": {"path": path} | given}),
            parse_gpus("A100-40G"),
        )
        for path, given in (
            (write(tmp_path / "all.jsonl", 8), {}),
            (write(tmp_path / "all.jsonl", 8), {"thinking": True}),
            (write(tmp_path / "none.jsonl", 8, reasoning=None), {}),
        )
    ]
    written = [plan.step.rollout_tokens for plan in plans]
    assert written[0] == written[1] > 1.5 * written[2]
    assert [plan.config.data.thinking for plan in plans] == [True, True, False]
    assert not any(plan.notes for plan in plans)


def test_reasoning_and_held_out_stories_count_in_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", 4)
    assert limit_of(config_of(path=path)) == 2 * int((STORY + REASONING) * TOKENS_PER_WORD)
    assert limit_of(config_of(path=path, thinking=False)) == 2 * int(STORY * TOKENS_PER_WORD)
    held_out = write(tmp_path / "held.jsonl", 1, story=3000)
    assert limit_of(config_of(path=path, eval_path=held_out, thinking=False)) == 8100


def test_data_of_a_hub_is_not_fetched_and_what_is_assumed_is_said(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--model_name_or_path", model, "--max_completion_length", "null"]
    hub = ["--data.path", "nobody/stories", "--data.eval_path", "nobody/held-out"]
    assumed = ["--gpus", "A100-40G", "--assume", "longest_story_words=1000"]
    assert main(["plan", *own, *hub, *assumed, "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "data.thinking is left to the data" in notes[0]
    assert "max_completion_length" in notes[1] and "1,000 words (longest_story_words)" in notes[1]
    assert main(["train", *own, *hub, "--dry-run"]) == 0
    assert "assumed for a longest human story of 12,000 words" in capsys.readouterr().out


def test_held_out_data_of_a_hub_leaves_the_training_records(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", 4)
    local = local_records(config_of(path=path, eval_path="nobody/held-out"))
    assert len(local.training) == 4 and local.held_out is None


def test_targets_bound_the_length_that_is_assumed() -> None:
    config = config_of(path="nobody/stories", max_target_words=2000, thinking=False)
    assert limit_of(config) == 2 * 2700
