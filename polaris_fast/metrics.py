"""Metrics of a run: `metrics.jsonl` first, then trackers; and a clock that sums time by phase.

The file is the record, a tracker is a copy: a line is on the disk before a tracker hears of it, and
a tracker that fails is dropped with a warning instead of ending the run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from .trackers import Tracker, make_tracker
from .types import UserError

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends one JSON object a step to `metrics.jsonl` and forwards it to trackers.

    Args:
        run_dir: folder of the run; made when missing.
        report_to: names of trackers: tensorboard, wandb, trackio.
        run_name: what trackers call the run; None: the folder's name.
        config: resolved configuration, for trackers that show one.

    Raises:
        UserError: unknown tracker, or its package is not installed.
    """

    def __init__(
        self,
        run_dir: str | Path,
        report_to: Sequence[str] = (),
        run_name: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        folder = Path(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS_FILE
        _cut_torn_tail(self.path)
        name = run_name or folder.resolve().name
        self._trackers = [make_tracker(kind, folder, name, config or {}) for kind in report_to]

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one line, `step` first, to the disk; then tell the trackers.

        Numbers are written unrounded; a non-finite number becomes null, so that every line is
        valid JSON.
        """
        row: dict[str, Any] = {"step": int(step)}
        row.update((name, _plain(value)) for name, value in metrics.items() if name != "step")
        _append(self.path, json.dumps(row, allow_nan=False) + "\n")
        numbers = {name: value for name, value in row.items() if _is_number(value)}
        for tracker in list(self._trackers):
            self._tell(tracker, lambda t: t.log(int(step), numbers))

    def truncate_after(self, step: int) -> int:
        """Drop the lines of later steps (resume); returns how many. Old file or new, never half."""
        rows = read_metrics(self.path)
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            _replace(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        for tracker in list(self._trackers):
            self._tell(tracker, lambda t: t.truncate_after(step))
        return len(rows) - len(kept)

    def close(self) -> None:
        """Finish the trackers; the file needs nothing."""
        for tracker in list(self._trackers):
            self._tell(tracker, lambda t: t.close())
        self._trackers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, tracker: Tracker, call: Callable[[Tracker], None]) -> None:
        try:
            call(tracker)
        except Exception as error:  # a tracker may raise anything; none of it may end a run
            log.warning(
                "%s failed and is left out from here on (%s: %s); metrics.jsonl goes on",
                type(tracker).__name__,
                type(error).__name__,
                error,
            )
            self._trackers.remove(tracker)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl` in order; no file: no rows; a line torn by a kill is left out."""
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    rows = []
    for line in raw.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:  # also the UnicodeDecodeError of a line cut inside a character
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


class PhaseClock:
    """Sums wall time by phase name; phases may nest, and time counts for the innermost only.

    Because no second counts twice, the sums of all phases and `other` are exactly the step. One
    thread owns a clock.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._open: list[str] = []
        self.reset()

    def reset(self) -> None:
        """Start a new step; open phases stay open and count from here."""
        self._start = self._mark = self._now()
        self._sums: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the block for `name`."""
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def seconds(self, name: str) -> float:
        """Time counted for `name` since the last reset."""
        return self._sums.get(name, 0.0)

    def metrics(self, prefix: str = "perf/") -> dict[str, float]:
        """`{prefix}{phase}_s` for every phase, `other_s` for the rest, `step_s` for the whole."""
        self._settle()
        total = self._mark - self._start
        times = {f"{prefix}{name}_s": spent for name, spent in self._sums.items()}
        other = max(0.0, total - sum(self._sums.values()))
        return {**times, f"{prefix}other_s": other, f"{prefix}step_s": total}

    def _settle(self) -> None:
        now = self._now()
        if self._open:
            name = self._open[-1]
            self._sums[name] = self._sums.get(name, 0.0) + now - self._mark
        self._mark = now


def _plain(value: Any) -> Any:
    """A JSON value: tensors and numpy scalars become numbers, non-finite numbers become None."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _append(path: Path, line: str) -> None:
    """Add one line and wait for the disk; on failure the file is as it was."""
    data = line.encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        try:
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        except OSError as error:
            os.ftruncate(handle, size)
            raise _disk_fault(path, error) from error
    finally:
        os.close(handle)


def _replace(path: Path, text: str) -> None:
    """Put a whole new file in place of `path`."""
    fresh = path.with_name(path.name + ".tmp")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise _disk_fault(path, error) from error


def _cut_torn_tail(path: Path) -> None:
    """Remove what follows the last newline: a line that a killed process did not finish."""
    if not path.exists():
        return
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        os.truncate(path, whole)


def _disk_fault(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be written ({error.strerror}); earlier steps are safe: make room or "
        "permit writing, then go on with --resume_from_checkpoint and the run folder"
    )
