"""Training runs of several seeds: each in a process of its own, and what they say together.

Intervals are Student's over seeds, t(0.975, n - 1) s / sqrt(n): five seeds are too few for a
bootstrap. Arms of a study share their seeds, so differences are taken seed by seed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# t(0.975) for 1 to 15 degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
      2.145, 2.131)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and half of its 95 % interval; NaN for a single seed."""

    mean: float
    half: float
    num_seeds: int

    @property
    def is_apart_from_0(self) -> bool:
        """Whether the interval leaves 0 out."""
        return abs(self.mean) > self.half


def run_in_process(arguments: Sequence[str], folder: Path, *, jobs: int, keep: bool) -> None:
    """`python ARGUMENTS`, which fills `folder`; its threads are what `jobs` at once leave each.

    Args:
        keep: leave a folder whose run is finished as it is.

    Raises:
        SystemExit: the run failed; the end of its output goes with it.
    """
    if keep and is_finished(folder):
        return
    shutil.rmtree(folder, ignore_errors=True)  # never measure a mixture of two runs
    threads = max(1, (os.cpu_count() or 1) // jobs)
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"{folder} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def is_finished(folder: Path) -> bool:
    """Whether a run lies there whole."""
    summary = folder / "summary.json"
    return summary.is_file() and json.loads(summary.read_text())["status"] == "finished"


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """The metrics of every step, in order and without a gap."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    return steps


def read_evaluations(folder: Path) -> list[dict[str, float]]:
    """Metrics of the held-out prompts before the first step and after the last."""
    files = (folder / f"eval-{when}.json" for when in ("start", "end"))
    return [json.loads(file.read_text())["metrics"] for file in files]


def estimate(values: Sequence[float]) -> Estimate:
    """Mean over seeds with its interval.

    Raises:
        ValueError: no values, or more than 16.
    """
    if not 1 <= len(values) <= len(_T) + 1:
        raise ValueError(f"estimate: needs 1 to {len(_T) + 1} seeds, got {len(values)}")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean, math.nan, 1)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, _T[len(values) - 2] * error, len(values))


def paired(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """b - a, seed by seed."""
    return estimate([y - x for x, y in zip(a, b, strict=True)])
