"""Whole runs on two ranks: equal to one process, resumable, and ended cleanly by a lost rank."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.ranks.launch import run, started
from tests.runs import SMALL, metrics_of, train

pytestmark = pytest.mark.slow


def run_arguments(output_dir: Path, **overrides: Any) -> list[str]:
    keys = {k.replace("__", "."): str(v) for k, v in overrides.items()}
    settings = SMALL | {"output_dir": str(output_dir)} | keys
    return [f"--{key}={value}" for key, value in settings.items()]


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "two"
    status, output = run("polaris_fast.train", *run_arguments(folder))
    assert status == 0, output
    return folder


def test_a_run_on_two_ranks_learns_what_one_process_learns(on_two: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "one") == 0
    one, two = metrics_of(tmp_path / "one"), metrics_of(on_two)
    for name in ("reward", "grad_norm", "entropy", "num_tokens", "completions/mean_length"):
        assert [line[name] for line in two] == pytest.approx(
            [line[name] for line in one], rel=1e-4
        ), name
    weights = [
        load_file(folder / "checkpoint-2" / "model.safetensors")
        for folder in (tmp_path / "one", on_two)
    ]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=2e-5), name


def test_a_resumed_run_on_two_ranks_repeats_the_uninterrupted_one(
    on_two: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert run("polaris_fast.train", *run_arguments(folder, max_steps=1))[0] == 0
    status, output = run(
        "polaris_fast.train",
        f"--resume_from_checkpoint={folder}",
        *run_arguments(folder),
    )
    assert status == 0, output
    whole, resumed = metrics_of(on_two)[1], metrics_of(folder)[1]
    for name in ("reward", "grad_norm", "policy/loss", "entropy"):
        assert resumed[name] == whole[name], name


def test_a_rank_that_dies_ends_the_run_and_leaves_its_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started("polaris_fast.train", *run_arguments(folder, max_steps=500)) as process:
        _wait_for(folder / "checkpoint-1" / "manifest.json", process)
        os.kill(_rank(process.pid, 1), signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed", output
    assert "rank" in summary["reason"] and "resume_from_checkpoint" in summary["reason"]
    assert (folder / "report.html").is_file()


def test_a_stop_request_ends_all_ranks_at_a_safe_point(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started(
        "polaris_fast.train", *run_arguments(folder, max_steps=500, save_steps=0)
    ) as process:
        _wait_for(folder / "metrics.jsonl", process)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted", output
    assert (folder / f"checkpoint-{summary['steps']}").is_dir()


def _wait_for(path: Path, process: Any) -> None:
    for _ in range(600):
        if path.is_file() and path.stat().st_size:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    raise AssertionError(f"{path.name} did not appear")


def _rank(launcher: int, rank: int) -> int:
    """Process id of a rank: the launcher's child whose environment says so."""
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "environ").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent == launcher and f"RANK={rank}".encode() in words:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")
