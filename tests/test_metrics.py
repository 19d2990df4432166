"""metrics.jsonl survives kills and full disks, trackers are copies of it, the clock counts once."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from polaris_fast.metrics import MetricsLog, PhaseClock, read_metrics
from polaris_fast.types import UserError


def lines(log: MetricsLog) -> list[str]:
    return log.path.read_text().splitlines()


def test_a_line_is_written_at_once_with_step_first_and_nothing_rounded(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run")
    log.log(1, {"reward": 0.1 + 0.2, "step": 99, "num_tokens": 12})
    assert lines(log) == ['{"step": 1, "reward": 0.30000000000000004, "num_tokens": 12}']


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.log(1, {"kl": float("nan"), "loss": torch.tensor(float("inf")), "reward": np.float32(0.5)})
    assert json.loads(lines(log)[0]) == {"step": 1, "kl": None, "loss": None, "reward": 0.5}


def test_a_line_torn_by_a_kill_is_cut_off_before_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes('{"step": 1}\n{"step": 2, "note": "\u00e9'.encode()[:-1])
    assert [row["step"] for row in read_metrics(path)] == [1]
    MetricsLog(tmp_path).log(2, {"reward": 1.0})
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_truncate_after_drops_later_steps_and_leaves_no_other_file(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in range(1, 6):
        log.log(step, {"reward": step / 3})
    assert log.truncate_after(3) == 2
    log.log(4, {"reward": 0.0})
    assert [row["reward"] for row in read_metrics(log.path)] == [1 / 3, 2 / 3, 1.0, 0.0]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert MetricsLog(tmp_path).truncate_after(0) == 0


def test_a_full_disk_is_one_clear_error_and_earlier_lines_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(tmp_path)
    log.log(1, {})
    write = os.write

    def half_then_full(handle: int, data: bytes) -> int:
        if len(data) > 5:
            return write(handle, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(UserError, match=r"No space left.*resume_from_checkpoint"):
        log.log(2, {})
    assert lines(log) == ['{"step": 1}']


def test_an_unknown_or_missing_tracker_is_named_at_construction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"report_to: 'wandb'.*pip install wandb"):
        MetricsLog(tmp_path, report_to=["wandb"])
    with pytest.raises(UserError, match="unknown tracker 'mlflow'"):
        MetricsLog(tmp_path, report_to=["mlflow"])


def test_tensorboard_gets_every_number_and_forgets_what_a_resume_repeats(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, report_to=["tensorboard"]) as log:
        for step in (1, 2, 3):
            log.log(step, {"reward": float(step), "kl": float("nan")})
        log.truncate_after(1)
        log.log(2, {"reward": 20.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["reward"]
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(1, 1.0), (2, 20.0)]


class FakeRun:
    """Stands for the run object of wandb and trackio."""

    def __init__(self, **settings: object) -> None:
        self.settings = settings
        self.logged: list[tuple[object, object]] = []
        self.finished = False

    def define_metric(self, *_: object, **__: object) -> None: ...

    def log(self, values: object, step: int | None = None) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    made: list[FakeRun] = []
    for name in ("wandb", "trackio"):
        module = types.ModuleType(name)
        module.init = lambda **s: made.append(FakeRun(**s)) or made[-1]  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    return made


def test_a_resumed_run_goes_on_in_the_same_hosted_run(
    tmp_path: Path, hosted: list[FakeRun]
) -> None:
    for _ in range(2):
        with MetricsLog(tmp_path, ["wandb", "trackio"], "my-run", {"seed": 1}) as log:
            log.log(7, {"reward": 0.5})
    wandb, trackio, wandb_again, _ = hosted
    assert wandb.settings["id"] == wandb_again.settings["id"]
    assert wandb.settings["name"] == trackio.settings["name"] == "my-run"
    assert wandb.logged == [({"reward": 0.5, "step": 7}, None)]
    assert trackio.logged == [({"reward": 0.5}, 7)]
    assert all(run.finished for run in hosted)


def test_a_tracker_that_fails_is_left_out_and_the_file_goes_on(
    tmp_path: Path, hosted: list[FakeRun], caplog: pytest.LogCaptureFixture
) -> None:
    log = MetricsLog(tmp_path, ["trackio"])
    hosted[0].log = lambda *_, **__: 1 / 0  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        log.log(1, {})
        log.log(2, {})
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2]
    assert len(caplog.records) == 1 and "left out" in caplog.text


class FakeTime:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_sum_by_name_and_a_nested_phase_counts_once() -> None:
    time = FakeTime()
    clock = PhaseClock(time)
    for _ in range(2):
        with clock.phase("train"):
            time.now += 3
            with clock.phase("optimizer"):
                time.now += 1
            time.now += 2
    time.now += 4
    assert clock.metrics() == {
        "perf/train_s": 10,
        "perf/optimizer_s": 2,
        "perf/other_s": 4,
        "perf/step_s": 16,
    }


def test_a_phase_ends_with_an_exception_and_reset_starts_a_new_step() -> None:
    time = FakeTime()
    clock = PhaseClock(time)
    with pytest.raises(KeyboardInterrupt), clock.phase("rollout"):
        time.now += 1
        raise KeyboardInterrupt
    time.now += 5
    assert clock.seconds("rollout") == 1
    clock.reset()
    assert clock.metrics() == {"perf/other_s": 0, "perf/step_s": 0}
