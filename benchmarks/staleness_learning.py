"""Does the default run learn as well from batches written one step ahead? Five seeds, paired.

    python -m benchmarks.staleness_learning [--seeds 0 1 2 3 4] [--jobs 2] [--out DIR] [--keep]
    python -m benchmarks.staleness_learning --out DIR --finished    # measure what there is

    default   rollouts by the weights that train
    copy      rollouts by `LaggingEngine`, renewed before each step: the same run but for rounding,
              so its distance from the default is what chance alone makes of a run
    truncate  weights exactly one update old (`rollout.max_staleness` 1), token_truncate
    mask      the same with token_mask, 1/2 to 2

Runs lie in OUT/ARM/seed-N. Rewards are compared by the weights that drew the rows: step s + 1 of
staleness 1 and step s of staleness 0 are drawn by the weights of as many updates. Differences are
to the mean of a seed's runs at staleness 0, with 95 % intervals over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.learning import RESULTS
from benchmarks.seeds import (
    estimate,
    is_finished,
    read_evaluations,
    read_steps,
    run_in_process,
)

LAST = 15  # steps whose mean is the end of a run
SERVED = {"rollout.engine": "vllm", "is_correction": "token_truncate"}
AHEAD = SERVED | {"rollout.max_staleness": "1"}
ARMS: dict[str, dict[str, str]] = {
    "default": {},
    "copy": SERVED,
    "truncate": AHEAD,
    "mask": AHEAD | {"is_correction": "token_mask", "is_floor": "0.5"},
}
FRESH = ("default", "copy")


@dataclass(frozen=True)
class Run:
    """What one run learnt, and how far its rows were from the weights that trained on them."""

    curve: float  # mean reward
    end: float  # of the last rows
    held_out: float  # reward of the held-out prompts after the last step
    mismatch_kl: float  # a token
    limited: float  # share of tokens whose importance weight was limited


Runs = Mapping[str, Mapping[int, Run]]  # by arm and seed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/staleness"))
    parser.add_argument("--keep", action="store_true", help="do not repeat runs that are finished")
    parser.add_argument("--finished", action="store_true", help="train nothing")
    parser.add_argument("--worker", nargs=3, metavar=("ARM", "SEED", "DIR"), help=argparse.SUPPRESS)
    known = parser.parse_args()
    if known.worker:
        return train_one(*known.worker)

    plan = [(arm, seed) for seed in known.seeds for arm in ARMS]
    if not known.finished:
        with ThreadPoolExecutor(known.jobs) as pool:
            list(pool.map(lambda p: run_one(*p, known), plan))
    runs: dict[str, dict[int, Run]] = {arm: {} for arm in ARMS}
    for arm, seed in plan:
        if is_finished(folder := known.out / arm / f"seed-{seed}"):
            runs[arm][seed] = measure(folder)
    text = table(runs)
    print("\n" + text)
    tree = {arm: {seed: asdict(run) for seed, run in of.items()} for arm, of in runs.items()}
    (RESULTS / "staleness_learning.json").write_text(json.dumps(tree, indent=1) + "\n")
    (RESULTS / "staleness_learning.md").write_text(text + "\n")
    return 0


def run_one(arm: str, seed: int, known: argparse.Namespace) -> None:
    """One run in a process of its own."""
    folder = known.out / arm / f"seed-{seed}"
    command = ["-m", "benchmarks.staleness_learning", "--worker", arm, str(seed), str(folder)]
    run_in_process(command, folder, jobs=known.jobs, keep=known.keep)


def train_one(arm: str, seed: str, folder: str) -> int:
    from benchmarks.lagging_engine import lagging_rollouts
    from polaris_fast.config_file import load_config
    from polaris_fast.trainer import run_training

    keys = {"seed": seed, "output_dir": folder, "progress": "false", "report_to": "[]"}
    with lagging_rollouts():
        return run_training(load_config("default_cpu", keys | ARMS[arm]))


def measure(folder: Path) -> Run:
    """Means of a finished run, over the rows that the weights of step 0 up to the last but one drew
    (the last but two at staleness 1)."""
    steps = read_steps(folder)
    lag = int(max(line.get("staleness/max", 0) for line in steps))
    drawn = steps[lag:] if lag else steps[:-1]

    def mean(name: str) -> float:
        return statistics.fmean(line.get(name, 0.0) for line in steps)

    return Run(
        curve=statistics.fmean(line["reward"] for line in drawn),
        end=statistics.fmean(line["reward"] for line in drawn[-LAST:]),
        held_out=read_evaluations(folder)[-1]["eval/reward"],
        mismatch_kl=mean("sampling/mismatch_kl"),
        limited=mean("is_weight/high_mean") + mean("is_weight/low_mean"),
    )


MEASURES = {
    "curve": "reward over the whole run",
    "end": f"reward of the last {LAST} steps",
    "held_out": "held-out reward at the end",
}


def table(runs: Runs) -> str:
    """A line a run, then the differences."""
    head = ["seed", "arm", *MEASURES.values(), "mismatch KL", "limited tokens"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for seed in sorted({seed for of in runs.values() for seed in of}):
        for arm, of in runs.items():
            if seed in of:
                run = of[seed]
                cells = [str(seed), arm, *(f"{getattr(run, name):.3f}" for name in MEASURES)]
                cells += [f"{run.mismatch_kl:.1e}", f"{run.limited:.2%}"]
                lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| difference | " + " | ".join(MEASURES.values()) + " | seeds |"]
    lines.append("|" + " --- |" * (len(MEASURES) + 2))
    for arm in ARMS:
        if arm not in FRESH:
            lines.append(_line(f"{arm} - staleness 0", _gaps(runs, arm)))
    lines.append(_line("copy - default (chance)", _chance(runs)))
    return "\n".join(lines)


Gaps = Mapping[str, Sequence[float]]  # by measure, one a seed


def _gaps(runs: Runs, arm: str) -> Gaps:
    def fresh(seed: int, name: str) -> float:
        return statistics.fmean(getattr(runs[a][seed], name) for a in FRESH if seed in runs[a])

    seeds = [s for s in runs[arm] if any(s in runs[a] for a in FRESH)]
    return {n: [getattr(runs[arm][s], n) - fresh(s, n) for s in seeds] for n in MEASURES}


def _chance(runs: Runs) -> Gaps:
    default, copy = (runs[arm] for arm in FRESH)
    seeds = [seed for seed in copy if seed in default]
    return {n: [getattr(copy[s], n) - getattr(default[s], n) for s in seeds] for n in MEASURES}


def _line(title: str, gaps: Gaps) -> str:
    cells = []
    for values in gaps.values():
        if len(values) < 2:
            cells.append(f"{values[0]:+.3f}" if values else "-")
        else:
            found = estimate(values)
            cells.append(f"{found.mean:+.3f} +- {found.half:.3f}")
    num_seeds = len(next(iter(gaps.values())))
    return f"| {title} | " + " | ".join(cells) + f" | {num_seeds} |"


if __name__ == "__main__":
    sys.exit(main())
