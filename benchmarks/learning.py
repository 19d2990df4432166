"""Does the default run learn? Five seeds and a control with shuffled rewards, as one table.

    python -m benchmarks.learning [--seeds 0 1 2 3 4] [--jobs 2] [--keep] [--key value ...]
    python -m benchmarks.learning --out runs/hri/anchor --keep   # the ablation's, and the control

A run passes when the mean reward of its last 5 steps exceeds that of its first 5 by 0.25 and mean
|ln(words / target)| falls by 30 %, in training and on held-out prompts alike, and at the start at
least 90 % of the rows end by their own end token. The control permutes the rewards inside every
group before the advantages are taken, and must not pass.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.seeds import read_evaluations, read_steps, run_in_process

RESULTS = Path(__file__).parent / "results"
MIN_REWARD_GAIN, MAX_ERROR_RATIO, MIN_OWN_END, WINDOW = 0.25, 0.70, 0.90, 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--keep", action="store_true", help="do not repeat runs that are finished")
    parser.add_argument("--worker", nargs=2, metavar=("SEED", "DIR"), help=argparse.SUPPRESS)
    parser.add_argument("--shuffled", action="store_true", help=argparse.SUPPRESS)
    known, overrides = parser.parse_known_args()
    if known.worker:
        return train_one(int(known.worker[0]), known.worker[1], known.shuffled, overrides)

    plan = [(seed, False) for seed in known.seeds] + [(known.seeds[0], True)]
    with ThreadPoolExecutor(known.jobs) as pool:
        rows = list(pool.map(lambda p: run_one(*p, known, overrides), plan))
    print("\n" + table(rows))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "learning.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "learning.md").write_text(table(rows) + "\n")
    passed = sum(row["passed"] for row in rows if not row["shuffled"])
    control_passed = any(row["passed"] for row in rows if row["shuffled"])
    print(
        f"\n{passed} of {len(known.seeds)} seeds pass, "
        f"the control {'PASSES' if control_passed else 'does not'}"
    )
    return 0 if passed >= 0.8 * len(known.seeds) and not control_passed else 1


def run_one(
    seed: int, shuffled: bool, known: argparse.Namespace, overrides: Sequence[str]
) -> dict[str, Any]:
    """One run in a process of its own; its threads are what the jobs leave each."""
    name = f"seed-{seed}" + ("-shuffled" if shuffled else "")
    folder = known.out / name
    command = ["-m", "benchmarks.learning", "--worker", str(seed), str(folder)]
    command += [*(["--shuffled"] if shuffled else []), *overrides]
    run_in_process(command, folder, jobs=known.jobs, keep=known.keep)
    row = measure(folder) | {"seed": seed, "shuffled": shuffled}
    print(f"{name}: {json.dumps(row)}", flush=True)
    return row


def train_one(seed: int, folder: str, shuffled: bool, overrides: Sequence[str]) -> int:
    from polaris_fast import step
    from polaris_fast.cli import parse_overrides
    from polaris_fast.config_file import load_config
    from polaris_fast.trainer import run_training

    if shuffled:
        step.assign_advantages = _shuffled(step.assign_advantages, random.Random(seed))
    keys = {"seed": str(seed), "output_dir": folder, "progress": "false"}
    return run_training(load_config("default_cpu", keys | parse_overrides(overrides)))


def _shuffled(assign: Any, generator: random.Random) -> Any:
    """Advantages from the group's own rewards, dealt to the wrong rows."""

    def wrapped(groups: Sequence[Any], *rest: Any) -> None:
        rows = [row for group in groups for row in group.rows]
        kept = [row.reward for row in rows]
        for group in groups:
            dealt = [row.reward for row in group.rows]
            generator.shuffle(dealt)
            for row, reward in zip(group.rows, dealt, strict=True):
                row.reward = reward
        assign(groups, *rest)
        for row, reward in zip(rows, kept, strict=True):
            row.reward = reward

    return wrapped


def measure(folder: Path) -> dict[str, Any]:
    """First and last `WINDOW` steps, and the held-out evaluations."""
    steps, (start, end) = read_steps(folder), read_evaluations(folder)
    first, last = steps[:WINDOW], steps[-WINDOW:]

    def change(name: str) -> list[float]:
        return [statistics.fmean(s[name] for s in part) for part in (first, last)]

    def held_out(name: str) -> list[float]:
        return [start[f"eval/{name}"], end[f"eval/{name}"]]

    row: dict[str, Any] = {
        "reward": change("reward"),
        "quality": change("reward/quality"),
        "abs_log_ratio": change("length/abs_log_ratio"),
        "eval_reward": held_out("reward"),
        "eval_quality": held_out("quality"),
        "eval_length_score": held_out("length_score"),
        "eval_abs_log_ratio": held_out("length/abs_log_ratio"),
        "own_end_at_start": 1 - steps[0]["completions/clipped_ratio"],
        "wall_s": json.loads((folder / "summary.json").read_text())["wall_s"],
    }
    row["passed"] = row["own_end_at_start"] >= MIN_OWN_END and all(
        row[prefix + "reward"][1] - row[prefix + "reward"][0] >= MIN_REWARD_GAIN
        and row[prefix + "abs_log_ratio"][1] <= MAX_ERROR_RATIO * row[prefix + "abs_log_ratio"][0]
        for prefix in ("", "eval_")
    )
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The runs as Markdown."""
    head = (
        "| seed | reward | quality | \\|ln(words/target)\\| | held-out reward | held-out quality | "
        "held-out \\|ln\\| | own end at start | passes |"
    )
    lines = [head, "|" + " --- |" * 9]
    for row in rows:
        cells = [f"{row['seed']}" + (" (shuffled rewards)" if row["shuffled"] else "")]
        for name in ("reward", "quality", "abs_log_ratio"):
            cells.append("{:.2f} -> {:.2f}".format(*row[name]))
        for name in ("eval_reward", "eval_quality", "eval_abs_log_ratio"):
            cells.append("{:.2f} -> {:.2f}".format(*row[name]))
        cells += [f"{row['own_end_at_start']:.0%}", "yes" if row["passed"] else "no"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
