"""Studies over seeds: intervals by hand, pairs that are whole, runs that are never a mixture."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablation
from benchmarks.ablation import (
    MEASURES,
    STUDIES,
    finished_seeds,
    step_of_level,
    table,
    train_seed,
    wait_for,
)
from benchmarks.seeds import estimate, is_finished, paired, read_steps, run_in_process
from polaris_fast.config_file import load_config


def write_run(folder: Path, rewards: list[float], status: str = "finished") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"reward/quality": 0.1, "completions/clipped_ratio": 0.25}
    lines = [{"step": n, "reward": r, **parts} for n, r in enumerate(rewards, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    held_out = {"eval/reward": rewards[-1], "eval/quality": 0.2, "eval/length/abs_log_ratio": 0.3}
    for when in ("start", "end"):
        (folder / f"eval-{when}.json").write_text(json.dumps({"metrics": held_out}))
    (folder / "summary.json").write_text(json.dumps({"status": status}))


def test_the_interval_is_students() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    assert found.half == pytest.approx(2.776 * math.sqrt(2.5 / 5))
    assert not estimate([0.1, -0.1]).is_apart_from_0 and estimate([1.0, 1.01]).is_apart_from_0
    assert math.isnan(estimate([1.0]).half) and not estimate([1.0]).is_apart_from_0
    with pytest.raises(ValueError, match="1 to 16 seeds, got 0"):
        estimate([])


def test_pairs_lose_what_seeds_have_in_common() -> None:
    found = paired([1.0, 5.0, 9.0], [1.5, 5.5, 9.5])
    assert (found.mean, found.half) == (0.5, 0.0)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        paired([1.0], [1.0, 2.0])


def test_a_level_is_reached_by_the_mean_of_ten_steps() -> None:
    assert step_of_level([-1.0] * 10 + [0.0] * 10) == 15  # five of each: -0.5
    assert step_of_level([-1.0] * 9 + [0.0]) is None
    assert step_of_level([0.0] * 9) is None


def test_only_seeds_that_every_arm_has_finished_are_measured(tmp_path: Path) -> None:
    for name in ("off", "on"):
        for seed in (0, 1):
            write_run(tmp_path / name / f"seed-{seed}", [0.0] * 12)
    write_run(tmp_path / "on" / "seed-1", [0.0] * 12, status="interrupted")
    arms = STUDIES["curriculum"]
    assert finished_seeds(arms, [0, 1, 2], tmp_path) == [0]
    with pytest.raises(SystemExit, match="no seed whose runs are finished in every arm"):
        finished_seeds(arms, [1, 2], tmp_path)


def test_the_table_has_means_differences_and_marks_what_is_apart_from_0(
    tmp_path: Path,
) -> None:
    arms = STUDIES["hri"]
    for place, name in enumerate(arms):
        for seed, noise in enumerate((0.0, 0.01)):
            write_run(tmp_path / name / f"seed-{seed}", [-0.9 + 0.4 * place + noise] * 20)
    found = {a: [ablation.measure(tmp_path / a / f"seed-{n}") for n in (0, 1)] for a in arms}
    lines = table(arms, [0, 1], found).splitlines()
    assert lines[0].count("|") == 7 and len(lines) == 2 + len(MEASURES) + 2
    assert "no human row minus HRI" in lines[0]
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[0] == "reward, whole curve"
    half = 12.706 * 0.01 / 2  # stdev of two values d apart, over the root of 2: d / 2
    assert cells[1] == f"-0.895 +- {half:.3f}"
    assert cells[5] == "**+0.800 +- 0.000**"
    assert "ended by their own token" in table(arms, [0, 1], found) and "0.750" in lines[5]
    assert lines[-1].endswith("counted as one step more: 2.")  # HRI's: -0.9 all the way
    alone = table(arms, [0], {name: rows[:1] for name, rows in found.items()})
    assert "+-" not in alone and "| -0.900 | -0.500 |" in alone
    assert "Seeds: 0; no interval." in alone


def test_arms_are_trained_in_turn_and_a_warm_start_begins_at_the_first_ones_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def record(arguments: list[str], folder: Path, **_: Any) -> None:
        commands.append(arguments)
        write_run(folder, [0.0] * 12)
        (folder / "checkpoint-9").mkdir()
        (folder / "checkpoint-14").mkdir()

    monkeypatch.setattr(ablation, "run_in_process", record)
    train_seed(STUDIES["warm_start"], 3, out=tmp_path, jobs=2, keep=False)
    plain, warm, after = commands
    assert plain[1:4] == ["benchmarks.learning", "--worker", "3"]
    assert f"--model_name_or_path={tmp_path / 'off' / 'seed-3' / 'base'}" in warm
    assert warm[1] == "polaris_fast.sft"
    assert after[-1] == f"--model_name_or_path={tmp_path / 'on' / 'sft-3' / 'checkpoint-14'}"


def test_every_key_of_a_study_is_one_of_the_configuration() -> None:
    for arms in STUDIES.values():
        for arm in arms.values():
            load_config(None, dict(k.removeprefix("--").split("=") for k in (*arm.keys, *arm.sft)))


def test_a_run_is_kept_whole_or_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run(folder, [0.0] * 12, status="interrupted")
    code = f"from pathlib import Path; Path({str(folder)!r}).mkdir()"
    run_in_process(["-c", code], folder, jobs=1, keep=True)
    assert list(folder.iterdir()) == []  # what was half done went first
    write_run(folder, [0.0] * 12)
    run_in_process(["-c", "raise SystemExit(1)"], folder, jobs=1, keep=True)
    assert is_finished(folder) and len(read_steps(folder)) == 12
    with pytest.raises(SystemExit, match=r"run failed:\n+no luck"):
        run_in_process(["-c", "raise SystemExit('no luck')"], folder, jobs=1, keep=False)
    assert not folder.exists()


def test_a_seed_that_fails_says_so_and_stops_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    def train(seed: int) -> None:
        if seed == 1:
            raise SystemExit("seed 1 failed: no room")
        done.append(seed)

    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(train, seed) for seed in range(5)]
        with pytest.raises(SystemExit, match="1 of 5 seeds failed; --keep"):
            wait_for(tasks)
    assert sorted(done) == [0, 2, 3, 4] and "no room" in capsys.readouterr().err
