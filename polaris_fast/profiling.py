"""`profile: {steps: [5, 6]}`: where a step's time goes, as a trace and as a table.

Written are `profile/step-N.json.gz`, which chrome://tracing and Perfetto open, and
`profile/step-N.txt`: the phases of the step, then the operators that took most. A trace holds every
operator of the first rank: with `rollout.engine: hf` that is every decode step of every layer, so
profile such a run with short completions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from .config import ProfileConfig
from .metrics import PhaseClock
from .step import StepResult

_FOLDER = "profile"
_NUM_OPERATORS = 25


def profiled(
    config: ProfileConfig, run_dir: Path, number: int, run: Callable[[], StepResult]
) -> StepResult:
    """Run a step, under the profiler when its number, counted from 1, was asked for."""
    if number not in config.steps:
        return run()
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as prof:
        result = run()
    folder = run_dir / _FOLDER
    folder.mkdir(exist_ok=True)
    prof.export_chrome_trace(str(folder / f"step-{number}.json.gz"))
    operators = prof.key_averages().table(
        sort_by="self_cuda_time_total" if on_gpu else "self_cpu_time_total",
        row_limit=_NUM_OPERATORS,
        max_name_column_width=50,
    )
    (folder / f"step-{number}.txt").write_text(f"{_phases(number, result.clock)}\n{operators}\n")
    return result


def _phases(number: int, clock: PhaseClock) -> str:
    seconds = clock.metrics(prefix="")
    total = seconds.pop("step_s")
    lines = [f"Step {number}: {total:.3f} s; profiling itself is in it"]
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        lines.append(f"{name.removesuffix('_s'):>12s} {spent:10.3f} s {spent / total:7.1%}")
    return "\n".join(lines) + "\n"
