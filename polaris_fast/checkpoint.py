"""Checkpoints: `checkpoint-N/`, loadable by `from_pretrained`, written whole or not at all.

A checkpoint is written into a temporary folder beside its place, listed in `manifest.json` with
sizes and checksums, flushed, then renamed: a crash at any moment leaves the previous one intact.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .types import UserError

_NAME = re.compile(r"checkpoint-(\d+)")
_DISK_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_MANIFEST, _STATE = "manifest.json", "trainer_state.json"


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands. Random streams are functions of (seed, step), so none is stored."""

    step: int  # optimizer steps done
    prompt_cursor: int  # prompts drawn from the data order
    num_tokens: int  # completion tokens generated so far
    kind: str = "grpo"  # of the run; optimizer state and data order are of one kind


def save_checkpoint(
    output_dir: Path,
    state: TrainerState,
    write: Callable[[Path], None],
    *,
    keep: int | None,
    spared: int = -1,
) -> Path:
    """Write checkpoint-N and drop the oldest beyond `keep`.

    Args:
        output_dir: the run's folder.
        state: what the trainer needs to go on.
        write: writes model, tokenizer and engine into the folder it is given.
        keep: checkpoints to keep; None keeps all.
        spared: step of one that is kept besides, the best so far.

    Raises:
        UserError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final = output_dir / f"checkpoint-{state.step}"
    draft = output_dir / f".checkpoint-{state.step}.partial"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        write(draft)
        (draft / _STATE).write_text(json.dumps(asdict(state)))
        _write_manifest(draft)
        _replace(draft, final)
    except Exception as error:
        # torch and safetensors report a full disk by errors of their own.
        shutil.rmtree(draft, ignore_errors=True)
        if not is_disk_fault(error):
            raise
        raise UserError(
            f"output_dir: cannot write {final}: the disk is full or not writable ({error}); free "
            "some space or give another output_dir, then go on with resume_from_checkpoint "
            "(earlier checkpoints are intact)"
        ) from error
    drop_old_checkpoints(output_dir, keep=keep, spared=spared)
    return final


def drop_old_checkpoints(run_dir: Path, *, keep: int | None, spared: int = -1) -> None:
    """Leave the newest `keep` and the one of step `spared`; all, where `keep` is None."""
    if keep is None:
        return
    for old in list_checkpoints(run_dir)[:-keep]:
        if old.name != f"checkpoint-{spared}":
            shutil.rmtree(old)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    found = [(int(m[1]), p) for p in run_dir.iterdir() if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def find_checkpoint(path: Path) -> Path:
    """The checkpoint meant by a run folder (its newest) or by a checkpoint folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not path.is_dir():
        raise UserError(
            f"resume_from_checkpoint: no such folder {str(path)!r}; give a run folder or one of "
            "its checkpoint-N folders"
        )
    if (path / _STATE).is_file() or _NAME.fullmatch(path.name):
        checkpoint = path
    else:
        found = list_checkpoints(path)
        if not found:
            raise UserError(
                f"resume_from_checkpoint: {path} holds no checkpoint-N folder; start the run anew "
                "or name another folder"
            )
        checkpoint = found[-1]
    _verify(checkpoint)
    return checkpoint


def load_state(checkpoint: Path) -> TrainerState:
    """The trainer's part of a verified checkpoint; what earlier versions kept beside it is left."""
    stored = json.loads((checkpoint / _STATE).read_text())
    known = {field.name for field in fields(TrainerState)}
    return TrainerState(**{name: value for name, value in stored.items() if name in known})


def _verify(checkpoint: Path) -> None:
    fault = None
    try:
        listed = json.loads((checkpoint / _MANIFEST).read_text())
        for name, (size, crc) in listed.items():
            file = checkpoint / name
            if not file.is_file():
                fault = f"{name} is missing"
            elif file.stat().st_size != size:
                fault = f"{name} has {file.stat().st_size} bytes, {size} were written"
            elif _crc32(file) != crc:
                fault = f"{name} does not match its checksum"
            if fault:
                break
    except (OSError, ValueError, TypeError) as error:
        fault = f"{_MANIFEST} is missing or unreadable ({type(error).__name__})"
    if fault:
        others = [p.name for p in list_checkpoints(checkpoint.parent) if p != checkpoint]
        remedy = (
            f"resume from an earlier one ({', '.join(reversed(others))})"
            if others
            else "start the run anew in another output_dir"
        )
        raise UserError(f"resume_from_checkpoint: {checkpoint} is damaged: {fault}; {remedy}")


def _write_manifest(folder: Path) -> None:
    listed = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        listed[str(file.relative_to(folder))] = (file.stat().st_size, _crc32(file))
    path = folder / _MANIFEST
    with path.open("w") as handle:
        json.dump(listed, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())


def _replace(draft: Path, final: Path) -> None:
    """Put `draft` in place; an older folder of that name (a re-run step) goes last."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    draft.rename(final)
    parent = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    shutil.rmtree(old, ignore_errors=True)


def _crc32(file: Path) -> int:
    crc = 0
    with file.open("rb") as handle:
        while block := handle.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def is_disk_fault(error: BaseException | None) -> bool:
    """A full or unwritable disk: the OS's own error, or what torch and safetensors make of it."""
    while error is not None:
        text = str(error)
        if isinstance(error, OSError) and error.errno in _DISK_CODES:
            return True
        if any(os.strerror(code) in text for code in _DISK_CODES):
            return True
        if "PytorchStreamWriter failed" in text or "inline_container" in text:
            return True
        error = error.__cause__ or error.__context__
    return False
