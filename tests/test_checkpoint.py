"""Checkpoints are whole or not there, and damage is named."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from polaris_fast.checkpoint import (
    TrainerState,
    find_checkpoint,
    list_checkpoints,
    load_state,
    save_checkpoint,
)
from polaris_fast.types import UserError


def _state(step: int) -> TrainerState:
    return TrainerState(step=step, prompt_cursor=8 * step, num_tokens=1)


def _write(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(os.urandom(1000))


def _save(run: Path, step: int, keep: int | None = None) -> Path:
    return save_checkpoint(run, _state(step), _write, keep=keep)


def test_a_saved_checkpoint_is_found_by_run_folder_and_by_name(tmp_path: Path) -> None:
    for step in (2, 10):
        _save(tmp_path, step)
    assert find_checkpoint(tmp_path).name == "checkpoint-10"
    assert load_state(find_checkpoint(tmp_path / "checkpoint-2")) == _state(2)


def test_a_state_with_a_field_of_an_earlier_version_still_loads(tmp_path: Path) -> None:
    folder = _save(tmp_path, 3)
    path = folder / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"human_scores": {"uid": {}}}))
    assert load_state(folder) == _state(3)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        _save(tmp_path, step, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-4"]


def test_a_crash_while_writing_leaves_the_previous_one(tmp_path: Path) -> None:
    _save(tmp_path, 1)

    def die(folder: Path) -> None:
        _write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, _state(2), die, keep=1)
    assert find_checkpoint(tmp_path).name == "checkpoint-1"
    _save(tmp_path, 2)
    assert find_checkpoint(tmp_path).name == "checkpoint-2"


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
    ids=["os", "torch"],
)
def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path, fault: Exception) -> None:
    _save(tmp_path, 1)

    def full(folder: Path) -> None:
        raise fault

    with pytest.raises(UserError, match="free some space"):
        save_checkpoint(tmp_path, _state(2), full, keep=1)
    assert find_checkpoint(tmp_path).name == "checkpoint-1"
    assert not list(tmp_path.glob(".checkpoint*"))


def test_other_errors_are_not_mistaken_for_a_full_disk(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        save_checkpoint(tmp_path, _state(1), broken, keep=None)


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[500] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: _flip(f / "model.safetensors"), "does not match its checksum"),
        (lambda f: os.truncate(f / "model.safetensors", 10), "has 10 bytes, 1000 were written"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing or unreadable"),
    ],
    ids=["bit flip", "truncated", "file missing", "no manifest"],
)
def test_a_damaged_checkpoint_is_refused_and_an_earlier_one_named(
    tmp_path: Path, damage: object, message: str
) -> None:
    _save(tmp_path, 1)
    damage(_save(tmp_path, 2))  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as error:
        find_checkpoint(tmp_path)
    assert "checkpoint-1" in str(error.value)
    assert find_checkpoint(tmp_path / "checkpoint-1").name == "checkpoint-1"


def test_a_folder_without_checkpoints_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint-N folder"):
        find_checkpoint(tmp_path)
