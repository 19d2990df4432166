"""The best checkpoint by a held-out metric: `best.json` and the link `best` beside it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

_FILE, _LINK = "best.json", "best"


@dataclass(frozen=True)
class Best:
    """What `best.json` holds."""

    step: int
    metric: str
    value: float


def read_best(run_dir: Path) -> Best | None:
    """The best evaluation so far; None before the first."""
    path = run_dir / _FILE
    return Best(**json.loads(path.read_text())) if path.is_file() else None


def is_best(run_dir: Path, value: float, metric: str, *, greater_is_better: bool) -> bool:
    """Whether this value beats all before it; the first one does, an equal one does not."""
    best = read_best(run_dir)
    if not math.isfinite(value):
        return False
    if best is None or best.metric != metric:
        return True
    return value > best.value if greater_is_better else value < best.value


def mark_best(run_dir: Path, step: int, metric: str, value: float) -> None:
    """Point `best` at checkpoint-`step`, which is on the disk already."""
    draft = run_dir / f".{_FILE}.partial"
    draft.write_text(json.dumps(asdict(Best(step, metric, value))))
    draft.replace(run_dir / _FILE)
    link = run_dir / f".{_LINK}.partial"
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(f"checkpoint-{step}")
        link.replace(run_dir / _LINK)
    except OSError:  # a file system without links: best.json names the folder
        link.unlink(missing_ok=True)


def forget_best_after(run_dir: Path, step: int) -> None:
    """Drop a mark that a resumed run has not reached yet."""
    best = read_best(run_dir)
    if best is not None and best.step > step:
        (run_dir / _FILE).unlink()
        (run_dir / _LINK).unlink(missing_ok=True)
