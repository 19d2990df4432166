"""Evaluation during a run: when it looks, which checkpoint is its best, what is refused first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polaris_fast.best import read_best
from polaris_fast.checkpoint import list_checkpoints
from polaris_fast.report.folder import read_run
from tests.runs import metrics_of, train

HELD_OUT = {"data__eval_fraction": 0.1, "num_eval_generations": 1}


def test_a_run_looks_every_few_steps_and_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = train(
        run,
        max_steps=5,
        eval_steps=2,
        eval_on_end=True,
        metric_for_best_model="eval/length/abs_log_ratio",
        greater_is_better=False,
        save_steps=1,
        save_total_limit=1,
        **HELD_OUT,
    )
    assert done == 0
    evals = read_run(run).evals
    assert list(evals) == ["step-2", "step-4", "end"]
    errors = {
        2: evals["step-2"]["metrics"]["eval/length/abs_log_ratio"],
        4: evals["step-4"]["metrics"]["eval/length/abs_log_ratio"],
        5: evals["end"]["metrics"]["eval/length/abs_log_ratio"],
    }
    best = min(errors, key=lambda step: errors[step])
    marked = read_best(run)
    assert marked is not None and marked.step == best and marked.value == errors[best]
    assert (run / "best").resolve() == (run / f"checkpoint-{best}").resolve()
    kept = {path.name for path in list_checkpoints(run)}
    assert kept == {"checkpoint-5", f"checkpoint-{best}"}
    card = (run / "checkpoint-5" / "README.md").read_text()
    assert f"{errors[5]:.3f}" in card


def test_a_resumed_run_drops_evaluations_of_steps_it_has_not_reached(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {"eval_steps": 1, "metric_for_best_model": "eval/reward", **HELD_OUT}
    assert train(run, max_steps=3, **settings) == 0
    first = (run / "eval-step-1.json").read_text()
    again = {"resume_from_checkpoint": run / "checkpoint-1", "max_steps": 2, **settings}
    assert train(run, **again) == 0
    assert sorted(p.name for p in run.glob("eval-*.json")) == [
        "eval-step-1.json",
        "eval-step-2.json",
    ]
    assert (run / "eval-step-1.json").read_text() == first


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eval_steps": 2}, "no held-out prompts"),
        ({"metric_for_best_model": "eval/reward"}, "nothing is evaluated"),
        (
            {"metric_for_best_model": "eval/rewad", "eval_steps": 2, **HELD_OUT},
            "choose one of eval/",
        ),
    ],
)
def test_what_cannot_decide_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, object], words: str
) -> None:
    assert train(tmp_path / "run", **settings) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_alarm_stops_the_run_with_its_work_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    status = train(
        run,
        max_steps=12,
        save_steps=0,
        alarms__action="stop",
        alarms__baseline_steps=1,
        alarms__patience=1,
        alarms__max_repetition_rise=0,
    )
    assert status == 130
    start, *between, last = [row["reward/self_repetition"] for row in metrics_of(run)]
    assert last > start and all(value <= start for value in between)
    assert (run / f"checkpoint-{len(between) + 2}").is_dir()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert "the alarm for repetition" in summary["reason"]
    assert "alarm: repetition: self-repetition is" in capsys.readouterr().err


def test_a_curriculum_starts_with_the_shortest_targets(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, data__curriculum_steps=20, data__curriculum_start=0.1, max_steps=1) == 0
    rows = (run / "stories" / "step-000001.jsonl").read_text().splitlines()
    targets = {json.loads(row)["target_word_count"] for row in rows}
    assert max(targets) <= 23
