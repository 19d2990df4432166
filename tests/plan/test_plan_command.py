"""`polaris plan` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from polaris_fast.cli import main
from polaris_fast.config import Config, JudgeConfig
from polaris_fast.model.tiny import tiny_config
from polaris_fast.plan import estimate
from polaris_fast.plan.estimate import estimate_before_run
from polaris_fast.plan.hardware import parse_gpus
from polaris_fast.types import StoryRecord


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_config("qwen3_5", num_layers=4).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def plan(model: str, *arguments: str) -> int:
    small = ["--max_completion_length", "500", "--packing.max_tokens_per_microbatch", "1024"]
    return main(["plan", "--model_name_or_path", model, *small, *arguments])


def test_report_and_picture(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "plan.svg"
    assert plan(model, "--gpus", "2xA100-40G", "--svg", str(picture)) == 0
    text = capsys.readouterr().out
    for word in ("2 x A100-40G", "backward", "Longest row that fits", "GPU hours", "Validated"):
        assert word in text
    root = ElementTree.parse(picture).getroot()
    assert root.tag.endswith("svg")


def test_json_numbers_add_up(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(model, "--gpus", "2xH100-80G", "--json", "--assume", "mfu=0.5") == 0
    found = json.loads(capsys.readouterr().out)
    memory = found["memory"]
    peak = sum(memory["phases"][memory["peak_phase"]].values())
    assert memory["total"] == peak + memory["fragmentation"] + memory["overhead"]
    assert found["assumed"]["mfu"] == 0.5
    seconds = found["step_seconds"]
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))


def test_recorded_lengths_are_used(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = tmp_path / "lengths.json"
    lengths.write_text("[100]")
    assert plan(model, "--gpus", "A100-40G", "--json", "--lengths", str(lengths)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lengths"] == f"recorded: {lengths}"
    tokens = found["run"]["judge_prompt_tokens"] / found["run"]["judgements"]
    assert tokens == pytest.approx(found["assumed"]["judge_rubric_tokens"] + 100)


def test_what_does_not_fit_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["plan", "--config", "polaris_9b", "--gpus", "RTX4090-24G", "--lora.r", "8"])
    text = capsys.readouterr().out
    assert status == 1
    assert "DOES NOT FIT" in text and "To make it fit" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "4xA100"], "--gpus: '4xA100' is not known"),
        (["--gpus", "A100-80G", "--learning_rte", "1"], "learning_rte"),
        (["--gpus", "A100-80G", "--assume", "x=1"], "--assume: 'x=1'"),
        (["--gpus", "A100-80G", "--lengths", "none.json"], "--lengths: cannot read 'none.json'"),
        (["--gpus", "A100-80G", "--svg", "/no/such/folder/x.svg"], "--svg: cannot write"),
    ],
)
def test_mistakes_are_named(
    model: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(model, *arguments) == 2
    assert message in capsys.readouterr().err


def test_dry_run_tells_memory_and_money_as_comments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "polaris_9b", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert any("estimate: 174 steps; 11,132 judgements" in line for line in comments)
    assert any("backward (peak)" in line for line in comments)


def test_a_run_that_costs_money_says_so_before_it_starts() -> None:
    records = [StoryRecord(f"r{i}", "Write.", 20, "A story.") for i in range(16)]
    judge = JudgeConfig(base_url="https://judge.example/v1", price_input=1.0, price_output=1.0)
    config = Config(judge=judge, max_completion_length=100)
    line = estimate_before_run(config, "cpu", 1, records)
    assert line is not None and "2 steps" in line and "USD" in line
    assert estimate_before_run(Config(), "cpu", 1, records) is None
    unknown = config.model_copy(update={"model_name_or_path": "nobody/no-such-model"})
    assert "no estimate" in (estimate_before_run(unknown, "cpu", 1, records) or "")


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_run_s_servers_have_gpus_besides_those_of_its_ranks(
    num_ranks: int, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "this_machine", lambda: parse_gpus("8xA100-40G"))
    seen: list[Any] = []
    monkeypatch.setattr(estimate, "estimate_summary", lambda *found: seen.append(found) or "")
    rollout = {"engine": "vllm", "vllm": {"gpus": [num_ranks]}}
    for changes in ({"rollout": rollout}, {}):
        config = Config.model_validate({"model_name_or_path": model, "max_steps": 10} | changes)
        estimate_before_run(config, "cuda", num_ranks, [])
    (memory, cost, _), (alone, _, _) = seen
    training = [next(p for p in plan.phases if p.name == "backward") for plan in (memory, alone)]
    assert training[0] == training[1] and memory.overhead == alone.overhead
    assert cost.gpu_hours == pytest.approx((num_ranks + 1) * cost.hours)
