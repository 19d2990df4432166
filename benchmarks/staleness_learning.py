"""Does the default run learn as well from batches written one step ahead? Five seeds, paired.

    python -m benchmarks.staleness_learning [--seeds 0 1 2 3 4] [--jobs 2] [--keep]

Each seed runs twice, with `rollout.max_staleness` 0 and 1, all else equal: token-wise truncated
importance sampling, and rollouts by `LaggingEngine`, whose weights are exactly one update older
than the trainer's at staleness 1. The table has the mean reward of windows of the run, of the
held-out prompts, and the paired difference over the seeds with its standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.learning import RESULTS

WINDOW, STALENESS = 15, (0, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/staleness"))
    parser.add_argument("--keep", action="store_true", help="do not repeat runs that are finished")
    parser.add_argument("--worker", nargs=3, metavar=("SEED", "STALENESS", "DIR"))
    known = parser.parse_args()
    if known.worker:
        return train_one(*known.worker)

    plan = [(seed, lag) for seed in known.seeds for lag in STALENESS]
    with ThreadPoolExecutor(known.jobs) as pool:
        runs = list(pool.map(lambda p: run_one(*p, known), plan))
    text = table(runs)
    print("\n" + text)
    (RESULTS / "staleness_learning.json").write_text(json.dumps(runs, indent=1) + "\n")
    (RESULTS / "staleness_learning.md").write_text(text + "\n")
    return 0


def run_one(seed: int, lag: int, known: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own; its threads are what the jobs leave each."""
    folder = known.out / f"seed-{seed}-staleness-{lag}"
    if not (known.keep and _is_finished(folder)):
        shutil.rmtree(folder, ignore_errors=True)  # never measure a mixture of two runs
        command = [sys.executable, "-m", "benchmarks.staleness_learning"]
        threads = max(1, (os.cpu_count() or 1) // known.jobs)
        done = subprocess.run(
            [*command, "--worker", str(seed), str(lag), str(folder)],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise SystemExit(f"{folder} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return measure(folder) | {"seed": seed, "max_staleness": lag}


def train_one(seed: str, lag: str, folder: str) -> int:
    from benchmarks.lagging_engine import lagging_rollouts
    from polaris_fast.config_file import load_config
    from polaris_fast.trainer import run_training

    keys = {
        "seed": seed,
        "output_dir": folder,
        "progress": "false",
        "report_to": "[]",
        "rollout.engine": "vllm",
        "rollout.max_staleness": lag,
        "is_correction": "token_truncate",
    }
    with lagging_rollouts():
        return run_training(load_config(None, keys))


def measure(folder: Path) -> dict[str, Any]:
    """Windows of the reward, held-out rewards, and how stale and how far off the tokens were."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    start, end = (json.loads((folder / f"eval-{n}.json").read_text()) for n in ("start", "end"))

    def mean(name: str, part: Sequence[dict[str, Any]]) -> float:
        return statistics.fmean(line[name] for line in part)

    return {
        "curve": [mean("reward", steps[n : n + WINDOW]) for n in range(0, len(steps), WINDOW)],
        "length_error": [mean("length/abs_log_ratio", p) for p in (steps[:5], steps[-5:])],
        "held_out": [e["metrics"]["eval/reward"] for e in (start, end)],
        "staleness": mean("staleness/mean", steps),
        "mismatch_kl": mean("sampling/mismatch_kl", steps),
        "clipped": mean("is_weight/high_mean", steps),
        "wall_s": json.loads((folder / "summary.json").read_text())["wall_s"],
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A line a run, then the paired differences."""
    steps = [f"reward, steps {1 + WINDOW * n}-{WINDOW * (n + 1)}" for n in (0, 3, 6, 9)]
    head = ["seed", "staleness", *steps, "whole curve", "held-out reward", "mismatch KL", "capped"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for run in runs:
        cells = [str(run["seed"]), f"{run['staleness']:.2f}"]
        cells += [f"{run['curve'][n]:.2f}" for n in (0, 3, 6, 9)]
        cells += [f"{statistics.fmean(run['curve']):.3f}"]
        cells += ["{:.2f} -> {:.2f}".format(*run["held_out"])]
        cells += [f"{run['mismatch_kl']:.1e}", f"{run['clipped']:.2%}"]
        lines.append("| " + " | ".join(cells) + " |")
    measures = {
        "reward over the whole curve": lambda run: statistics.fmean(run["curve"]),
        f"reward of the last {WINDOW} steps": lambda run: run["curve"][-1],
        "held-out reward at the end": lambda run: run["held_out"][1],
    }
    num_seeds = len({run["seed"] for run in runs})
    lines += ["", f"Staleness 1 minus 0, mean over {num_seeds} seeds and its standard error:", ""]
    for name, value in measures.items():
        gaps = _paired([(run["seed"], run["max_staleness"], value(run)) for run in runs])
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        lines.append(f"- {name}: {statistics.fmean(gaps):+.3f} +- {error:.3f}")
    return "\n".join(lines)


def _paired(values: Sequence[tuple[int, int, float]]) -> list[float]:
    by_run = {(seed, lag): value for seed, lag, value in values}
    seeds = sorted({seed for seed, _, _ in values})
    return [by_run[seed, 1] - by_run[seed, 0] for seed in seeds]


def _is_finished(folder: Path) -> bool:
    summary = folder / "summary.json"
    return summary.is_file() and json.loads(summary.read_text())["status"] == "finished"


if __name__ == "__main__":
    sys.exit(main())
