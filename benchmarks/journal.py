"""Results that outlive failures: one JSON a part, whole after each entry.

    journal = Journal(path, device, {"rows": []})
    with journal.trying("rows 16 x 1,008", "cuda, one read"):
        ...

What raises is noted under `failed` with its first line, costs its own entry alone, and the part
goes on. A CUDA error may leave the context dead, where all that comes later would fail: then, as
after a crash or a hang, the process ends and the JSON says under `running` what it was at. Started
again with `--resume`, the part goes on after what is there, and without who ended it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

LIMIT_S = 60.0
"""of one attempt on a GPU, compilers included: a kernel that hangs ends its process then"""
_ENDED = "the process ended while it ran"


class DeviceLost(Exception):
    """A CUDA error that this process cannot go on after; the message says whose."""


class Journal:
    """The results of one part.

    Args:
        path: its JSON; None keeps it in memory.
        device: what a failure may have killed.
        empty: the results before the first.
        resume: go on after what the file holds.
    """

    def __init__(
        self,
        path: Path | None,
        device: torch.device,
        empty: dict[str, Any],
        *,
        resume: bool = False,
    ) -> None:
        self.path = path
        self.device = device
        found = read_json(path) if resume and path is not None else None
        self.results: dict[str, Any] = {**empty, "failed": {}, "ended": {}} | (found or {})
        self._limit_s: float | None = None
        self._has_left_overs = False
        if (running := self.results.pop("running", None)) is not None:
            where, who = running
            why = self.results["failed"].setdefault(_key(where, who), _ENDED)
            self.results["ended"][who] = f"{why} ({where})"

    @property
    def failed(self) -> dict[str, str]:
        """Why, by "where: who"."""
        return self.results["failed"]

    def refusal(self, where: str, who: str) -> str | None:
        """Why it is not to be tried: it failed here, or has ended a process somewhere."""
        return self.failed.get(_key(where, who)) or self.results["ended"].get(who)

    def status(self) -> int:
        """The part's exit status, each failure printed."""
        for key, why in self.failed.items():
            print(f"FAILED: {key}: {why}")
        return 1 if self.failed else 0

    def write(self) -> None:
        """The JSON as it is now."""
        if self.path is not None:
            write_json(self.path, self.results)

    @contextmanager
    def trying(self, where: str, who: str, *, limit_s: float = LIMIT_S) -> Iterator[None]:
        """Run what may fail; attempts may nest.

        Raises:
            DeviceLost: it has left the device dead.
        """
        outside = self.results.get("running"), self._limit_s
        if self._has_left_overs:
            # memory that a failed call's traceback held on to is in nobody's way then
            torch.cuda.empty_cache()
            self._has_left_overs = False
        self._watch([where, who], limit_s)
        self.write()
        try:
            yield
        except DeviceLost:
            # `running` stays: it says whose
            raise
        except Exception as error:
            # a refusal, a compiler that fails, no memory, a launch that fails: any of them
            self.note(where, who, error)
        finally:
            faulthandler.cancel_dump_traceback_later()
        self._watch(*outside)
        self.write()

    def note(self, where: str, who: str, error: Exception) -> None:
        """Write down what `who` raised; DeviceLost if nothing can run after it."""
        self.failed[_key(where, who)] = first_line(error)
        if is_lost(self.device):
            self.results["running"] = [where, who]
            self.write()
            raise DeviceLost(f"{_key(where, who)}: {first_line(error)}") from error
        self._has_left_overs = self.device.type == "cuda"

    def _watch(self, running: list[str] | None, limit_s: float | None) -> None:
        self._limit_s = limit_s
        if running is None:
            self.results.pop("running", None)
        else:
            self.results["running"] = running
        if limit_s is not None and self.device.type == "cuda":
            # a thread of its own ends the process: one that waits for a device hears no signal
            faulthandler.dump_traceback_later(limit_s, exit=True, file=sys.__stderr__)


def run_part(
    doc: str | None,
    empty: dict[str, Any],
    measure: Callable[..., None],
    arguments: list[str] | None,
) -> int:
    """The command line of a part that a GPU is measured by; its exit status.

    Args:
        doc: of its module.
        empty: its results before the first.
        measure: called with the journal, and `tiny=`.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="shapes for a dry run")
    add_arguments(parser)
    known = parser.parse_args(arguments)
    journal = Journal(known.json, torch.device(known.device), empty, resume=known.resume)
    try:
        measure(journal, tiny=known.tiny)
    except DeviceLost as lost:
        print(f"stopped, the device is lost: {lost}")
        return 1
    return journal.status()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--json` and `--resume`."""
    parser.add_argument("--json", type=Path, help="written after each entry")
    parser.add_argument(
        "--resume", action="store_true", help="go on after the entries that --json holds"
    )


def first_line(error: Exception) -> str:
    """The error's type and the first line of its message."""
    line = str(error).strip().partition("\n")[0]
    return f"failed with {type(error).__name__}: {line}"[:200]


def is_lost(device: torch.device) -> bool:
    """Whether the CUDA context is dead, as after an illegal access: every later call fails."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def write_json(path: Path, data: Any) -> None:
    """Replace the file at once: whoever reads it, or kills this process, finds a whole one."""
    staged = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    staged.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(staged, path)


def read_json(path: Path) -> Any:
    """What a file holds; None where there is none, or no JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _key(where: str, who: str) -> str:
    return f"{where}: {who}"
