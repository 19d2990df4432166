"""What one ingredient of the default run is worth: arms of a study, the same seeds, paired.

    python -m benchmarks.ablation hri [--seeds 0 1 2 3 4] [--jobs 2] [--out runs/hri] [--keep]
    python -m benchmarks.ablation hri --out runs/hri --finished    # measure what there is

    hri         human-reference injection, LUFFY's human row, no human row
    curriculum  all prompts from the start, shortest first
    warm_start  GRPO from the embedded base, GRPO after `polaris sft` on the same stories
    ranks       one process, DeepSpeed ZeRO-2 on two ranks: the same rewards are expected

Runs lie in OUT/ARM/seed-N. The reward contains length, so quality, which has none of it, stands
apart. Differences are to the first arm, seed by seed, with 95 % intervals over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.learning import RESULTS
from benchmarks.seeds import (
    Estimate,
    estimate,
    is_finished,
    paired,
    read_evaluations,
    read_steps,
    run_in_process,
)

LAST = 15  # steps whose mean is the end of a run
SMOOTH, REWARD_LEVEL = 10, -0.5  # mean reward of so many steps, about half of what is learnt
SFT_FOLDER = "sft"


@dataclass(frozen=True)
class Arm:
    """One setting of a study: keys of its training run, and of a supervised run before it."""

    title: str
    keys: tuple[str, ...]
    sft: tuple[str, ...] = ()  # starts from the base that the first arm's run has built
    ranks: int = 1


STUDIES: dict[str, dict[str, Arm]] = {
    "hri": {
        "anchor": Arm("HRI", ("--hri.mode=anchor",)),
        "luffy": Arm("LUFFY-style", ("--hri.mode=luffy",)),
        "off": Arm("no human row", ("--hri.mode=off",)),
    },
    "curriculum": {
        "off": Arm("all lengths", ("--data.curriculum_steps=0",)),
        "on": Arm("shortest first", ("--data.curriculum_steps=40",)),
    },
    "warm_start": {
        "off": Arm("base", ()),
        # without its own limit it would take the run's 150 steps, 86 passes over the stories
        "on": Arm(
            "after sft", (), ("--max_steps=-1", "--sft.num_epochs=8", "--sft.learning_rate=1e-3")
        ),
    },
    "ranks": {
        "one": Arm("one process", ("--max_steps=60",)),
        "two": Arm(
            "two ranks, ZeRO-2",
            ("--max_steps=60", "--engine.kind=deepspeed", "--engine.zero_stage=2"),
            ranks=2,
        ),
    },
}


@dataclass(frozen=True)
class Measure:
    """A number of a run, of the policy's own stories."""

    title: str
    digits: int = 3


MEASURES = {
    "reward": Measure("reward, whole curve"),
    "reward_last": Measure(f"reward, last {LAST} steps"),
    "quality_last": Measure(f"quality, last {LAST} steps"),
    "own_end": Measure(f"ended by their own token, last {LAST} steps"),
    "steps_to_level": Measure(f"steps to a reward of {REWARD_LEVEL}", 1),
    "eval_reward": Measure("held-out reward at the end"),
    "eval_quality": Measure("held-out quality at the end"),
    "eval_abs_log_ratio": Measure("held-out \\|ln(words/target)\\| at the end"),
}

Row = dict[str, float]
Found = dict[str, list[Row]]  # arm -> one row a seed, in the order of the seeds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="seeds side by side")
    parser.add_argument("--out", type=Path, help="folder of the runs; without it: runs/STUDY")
    parser.add_argument("--keep", action="store_true", help="do not repeat runs that are finished")
    parser.add_argument(
        "--finished", action="store_true", help="train nothing: seeds whose arms are all finished"
    )
    known = parser.parse_args()
    arms, out = STUDIES[known.study], known.out or Path("runs") / known.study
    if known.finished:
        seeds = finished_seeds(arms, known.seeds, out)
    else:
        seeds = known.seeds
        train = partial(train_seed, arms, out=out, jobs=known.jobs, keep=known.keep)
        with ThreadPoolExecutor(known.jobs) as pool:
            wait_for([pool.submit(train, seed) for seed in seeds])
    found = {name: [measure(out / name / f"seed-{n}") for n in seeds] for name in arms}
    text = table(arms, seeds, found)
    print("\n" + text)
    result = {"study": known.study, "seeds": seeds, "arms": found}
    (RESULTS / f"{known.study}_ablation.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"{known.study}_ablation.md").write_text(text + "\n")
    return 0


def wait_for(tasks: Sequence[Future[None]]) -> None:
    """Let all seeds end; one that fails says so at once, and stops no other.

    Raises:
        SystemExit: some failed.
    """
    failed = 0
    for task in as_completed(tasks):
        if (error := task.exception()) is not None:
            failed += 1
            print(error, file=sys.stderr, flush=True)
    if failed:
        raise SystemExit(f"{failed} of {len(tasks)} seeds failed; --keep repeats these alone")


def finished_seeds(arms: Mapping[str, Arm], seeds: Sequence[int], out: Path) -> list[int]:
    """Seeds that every arm has finished: pairs are whole or they are none.

    Raises:
        SystemExit: there is none.
    """
    found = [n for n in seeds if all(is_finished(out / name / f"seed-{n}") for name in arms)]
    if not found:
        raise SystemExit(f"--finished: {out} holds no seed whose runs are finished in every arm")
    return found


def train_seed(arms: Mapping[str, Arm], seed: int, *, out: Path, jobs: int, keep: bool) -> None:
    """All arms of one seed, one after the other: a warm start needs the base of the first."""
    base = out / next(iter(arms)) / f"seed-{seed}" / "base"
    for name, arm in arms.items():
        folder, keys = out / name / f"seed-{seed}", list(arm.keys)
        if arm.sft:
            warm = out / name / f"{SFT_FOLDER}-{seed}"
            settings = ["--config=default_cpu", f"--model_name_or_path={base}"]
            settings += [f"--output_dir={warm}", f"--seed={seed}"]
            command = ["-m", "polaris_fast.sft", *settings, "--progress=false", *arm.sft]
            run_in_process(command, warm, jobs=jobs, keep=keep)
            keys.append(f"--model_name_or_path={newest_checkpoint(warm)}")
        run_in_process(grpo_command(seed, folder, keys, arm.ranks), folder, jobs=jobs, keep=keep)
        print(f"{folder}: {json.dumps(measure(folder))}", flush=True)


def grpo_command(seed: int, folder: Path, keys: Sequence[str], ranks: int) -> list[str]:
    """Arguments for Python that train the default task."""
    if ranks == 1:
        return ["-m", "benchmarks.learning", "--worker", str(seed), str(folder), *keys]
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    place = [f"--seed={seed}", f"--output_dir={folder}", "--progress=false"]
    return [*launch, "-m", "polaris_fast.train", *place, *keys]


def newest_checkpoint(run: Path) -> Path:
    """The one of the most steps."""
    return max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def measure(folder: Path) -> Row:
    """`MEASURES` of one run."""
    steps, (_, end) = read_steps(folder), read_evaluations(folder)

    def mean(name: str, part: Sequence[Mapping[str, float]]) -> float:
        return statistics.fmean(line[name] for line in part)

    last, reached = steps[-LAST:], step_of_level([line["reward"] for line in steps])
    return {
        "reward": mean("reward", steps),
        "reward_last": mean("reward", last),
        "quality_last": mean("reward/quality", last),
        "own_end": 1.0 - mean("completions/clipped_ratio", last),
        "steps_to_level": float(reached or len(steps) + 1),
        "never_reached": float(reached is None),
        "eval_reward": end["eval/reward"],
        "eval_quality": end["eval/quality"],
        "eval_abs_log_ratio": end["eval/length/abs_log_ratio"],
    }


def step_of_level(rewards: Sequence[float]) -> int | None:
    """The step at which the mean of the last `SMOOTH` rewards first reaches `REWARD_LEVEL`."""
    for end in range(SMOOTH, len(rewards) + 1):
        if statistics.fmean(rewards[end - SMOOTH : end]) >= REWARD_LEVEL:
            return end
    return None


def table(arms: Mapping[str, Arm], seeds: Sequence[int], found: Found) -> str:
    """A line a measure: the arms, then what the others have more than the first."""
    first, *others = arms
    head = ["", *(arm.title for arm in arms.values())]
    head += [f"{arms[name].title} minus {arms[first].title}" for name in others]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for key, one in MEASURES.items():
        values = {name: [row[key] for row in rows] for name, rows in found.items()}
        cells = [_text(estimate(values[name]), one) for name in arms]
        cells += [_text(paired(values[first], values[name]), one, sign="+") for name in others]
        lines.append("| " + " | ".join([one.title, *cells]) + " |")
    what = "mean +- half of the 95 % interval over seeds" if len(seeds) > 1 else "no interval"
    lines += ["", f"Seeds: {', '.join(map(str, seeds))}; {what}."]
    never = [row for rows in found.values() for row in rows if row["never_reached"]]
    if never:
        lines[-1] += (
            f" Runs that never reach {REWARD_LEVEL}, counted as one step more: {len(never)}."
        )
    return "\n".join(lines)


def _text(found: Estimate, measure: Measure, sign: str = "") -> str:
    """`mean +- half` (one seed: the mean); a difference whose interval leaves 0 out is bold."""
    text = f"{found.mean:{sign}.{measure.digits}f}"
    if found.num_seeds > 1:
        text += f" +- {found.half:.{measure.digits}f}"
    return f"**{text}**" if sign and found.is_apart_from_0 else text


if __name__ == "__main__":
    sys.exit(main())
