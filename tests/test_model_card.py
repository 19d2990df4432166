"""The model card tells what was trained on what, and the numbers that were measured."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from polaris_fast.config import Config
from polaris_fast.model_card import write_model_card


def card(run: Path, **settings: object) -> str:
    checkpoint = run / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    config = Config.model_validate(settings)
    path = write_model_card(checkpoint, config, steps=7, num_records=1388)
    return path.read_text(encoding="utf-8")


def write_eval(run: Path, name: str, reward: float) -> None:
    metrics = {"eval/reward": reward, "eval/length/within_20": reward / 2}
    (run / f"eval-{name}.json").write_text(json.dumps({"metrics": metrics}))


def test_the_front_matter_is_yaml_and_names_a_hub_model(tmp_path: Path) -> None:
    text = card(tmp_path, model_name_or_path="Qwen/Qwen3.5-9B")
    fields = yaml.safe_load(text.split("---")[1])
    assert fields["base_model"] == "Qwen/Qwen3.5-9B"
    assert fields["pipeline_tag"] == "text-generation"


def test_a_local_folder_is_no_base_model_of_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "my_model"
    folder.mkdir()
    text = card(tmp_path / "run", model_name_or_path=str(folder))
    assert "base_model" not in yaml.safe_load(text.split("---")[1])


def test_numbers_before_and_after_are_those_of_the_evaluations(tmp_path: Path) -> None:
    write_eval(tmp_path, "start", -0.5)
    write_eval(tmp_path, "end", 0.25)
    text = card(tmp_path, judge={"base_url": "https://judge.example/v1", "model": "big-judge"})
    assert "| reward | -0.500 | 0.250 |" in text
    assert "| share of stories within 20 % of the target | -0.250 | 0.125 |" in text
    assert "| judge | big-judge |" in text
    assert "judge.example" not in text  # an address may be private


def test_a_run_without_evaluation_or_judge_says_so(tmp_path: Path) -> None:
    text = card(tmp_path, hri={"mode": "off"})
    assert "No held-out prompts were evaluated." in text
    assert "no judge of quality" in text
    assert "and human reference stories" not in text
    assert "| human references | none |" in text
