"""Reads a run folder; whatever is missing or torn is left out and, if it matters, named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..metrics import METRICS_FILE, read_metrics
from ..types import UserError

HUMAN_SEARCH_BYTES = 64 * 2**20  # stories read at most in search of a prompt's human story


@dataclass(frozen=True)
class RunFolder:
    """What a run left on the disk."""

    path: Path
    config: dict[str, Any]
    config_text: str
    rows: list[dict[str, Any]]  # metrics.jsonl
    story_files: dict[int, Path]  # step -> file, ascending
    evals: dict[str, dict[str, Any]]  # "start", "step-N" in order, "end"
    warm_start: list[dict[str, Any]]
    summary: dict[str, Any]
    unreadable: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The configured name, else the folder's."""
        return str(self.config.get("run_name") or self.path.resolve().name)

    @property
    def steps(self) -> np.ndarray:
        """Step numbers, (S,) float."""
        return np.array([row["step"] for row in self.rows], dtype=float)

    def series(self, key: str) -> np.ndarray:
        """One metric over the steps, (S,) float; NaN where it is absent or null."""
        return column(self.rows, key)

    def has(self, key: str) -> bool:
        """Whether any step has a number for `key`."""
        return bool(np.isfinite(self.series(key)).any())

    def setting(self, dotted: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted key."""
        node: Any = self.config
        for part in dotted.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return node

    def stories(self, step: int) -> list[dict[str, Any]]:
        """Rows of one step; none when its file is missing."""
        path = self.story_files.get(step)
        return list(_lines(path)) if path is not None else []

    def human_stories(self, uids: set[str]) -> dict[str, dict[str, Any]]:
        """Human rows of these prompts, from any step: early groups have none of their own yet."""
        found: dict[str, dict[str, Any]] = {}
        budget = HUMAN_SEARCH_BYTES
        for path in self.story_files.values():
            budget -= path.stat().st_size
            if len(found) == len(uids) or budget < 0:
                break
            for row in _lines(path, containing='"human"'):
                if row.get("kind") == "human" and row.get("uid") in uids:
                    found.setdefault(str(row["uid"]), row)
        return found


def read_run(run_dir: str | Path) -> RunFolder:
    """Read everything but the stories, which are read when asked for.

    Raises:
        UserError: no such folder, or nothing in it that a run writes.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise UserError(f"report: no such run folder {str(path)!r}; give the run's output_dir")
    if not any((path / name).exists() for name in (METRICS_FILE, "config.yaml", "stories")):
        raise UserError(
            f"report: {str(path)!r} holds no run (no {METRICS_FILE}, config.yaml or stories); "
            "give the run's output_dir"
        )
    unreadable: list[str] = []
    config_text = _text(path / "config.yaml")
    try:
        config = yaml.safe_load(config_text)
    except yaml.YAMLError:
        config = None
        unreadable.append("config.yaml")
    names = ["start", *_between(path), "end"]
    evals = {name: _object(path / f"eval-{name}.json", unreadable) for name in names}
    warm_start = path / "warm_start.jsonl"
    return RunFolder(
        path=path,
        config=config if isinstance(config, dict) else {},
        config_text=config_text,
        rows=read_metrics(path / METRICS_FILE),
        story_files=_story_files(path / "stories"),
        evals={name: value for name, value in evals.items() if value},
        warm_start=list(_lines(warm_start)) if warm_start.exists() else [],
        summary=_object(path / "summary.json", unreadable),
        unreadable=unreadable,
    )


def column(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    """`key` of every row as floats, NaN for what is no number."""
    values = (row.get(key) for row in rows)
    return np.array([v if isinstance(v, int | float) else np.nan for v in values], dtype=float)


def _between(folder: Path) -> list[str]:
    """`step-N` of the evaluations during training, in order; a person's copies are left out."""
    stems = (file.stem.removeprefix("eval-step-") for file in folder.glob("eval-step-*.json"))
    return [f"step-{stem}" for stem in sorted((s for s in stems if s.isdecimal()), key=int)]


def _story_files(folder: Path) -> dict[int, Path]:
    files = {}
    for path in sorted(folder.glob("step-*.jsonl")):
        number = path.stem.removeprefix("step-")
        if number.isdecimal():
            files[int(number)] = path
    return dict(sorted(files.items()))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _object(path: Path, unreadable: list[str]) -> dict[str, Any]:
    text = _text(path)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        unreadable.append(path.name)
        return {}
    return value


def _lines(path: Path, containing: str = "") -> Iterator[dict[str, Any]]:
    """Objects of a JSONL file; torn lines are left out, so are lines without `containing`."""
    for line in _text(path).split("\n"):
        if containing not in line:
            continue
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
