"""Builds a run folder with plausible curves and stories, for the report's tests and its pictures.

`python tests/run_folder.py FOLDER [STEPS]` writes one and prints the path of its report.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

OPENINGS = (
    "The ferry had stopped running on the day the bell fell into the harbour.",
    "Nobody in the tower remembered who wound the clock.",
    "My sister kept the letters in a tin that smelled of oranges.",
    "It rained inside the library again, so we moved the atlases upstairs.",
    "The orchard was sold with the old man still in it.",
)
MIDDLES = (
    "She counted the steps twice and came to a different number each time.",
    '"You could have written," he said, and put the kettle on for two.',
    "Below them the river carried a chair, then a door, then half a piano.",
    "The dog looked at the stairs as though they had been explained to it badly.",
    "I held the lamp while she read, and neither of us turned the page.",
    "There was salt in the hinges and salt in the bread.",
    "By noon the whole street had come to see, and by evening they had all gone home.",
    "He wore his father's coat, which was too heavy for any weather.",
    "The answer, when it came, was only the sound of a boat being tied up.",
)
ENDINGS = (
    "In the morning the water was flat, and the bell rang once beneath it.",
    "We left the window open, in case it came back the way it went.",
    "She folded the map along the line where the sea had been.",
)
PROMPTS = (
    "A lighthouse keeper finds that the light answers.",
    "Two sisters divide a house that will not be divided.",
    "Write about the last day of a village <b>before</b> the dam & after it.",
    "A clockmaker is asked to build a slower hour.",
    "A letter arrives forty years late, addressed to the dog.",
    "The night bus takes a street that is on no map.",
    "A cook is hired for a feast at which nobody eats.",
    "A child sells shadows at the market, three for a coin.",
)
CONFIG = """\
model_name_or_path: null
device: cpu
max_steps: {steps}
prompts_per_step: 8
num_generations: 6
learning_rate: 0.001
run_name: {name}
reward:
  function: null
  length_reward: ratio
judge:
  base_url: null
  model: local-heuristic
hri:
  mode: anchor
  weight: 0.4
"""


def build_run_folder(
    folder: Path,
    *,
    steps: int = 60,
    seed: int = 0,
    status: str | None = "finished",
    kl: bool = True,
    evals: bool = True,
    story_steps: Sequence[int] | None = None,
) -> Path:
    """Write a run of `steps` steps into `folder`; `status` None leaves out summary.json."""
    random = Random(seed)
    (folder / "stories").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG.format(steps=steps, name="lantern-cpu"))
    _write_lines(folder / "metrics.jsonl", [_metrics(random, i, steps, kl) for i in range(steps)])
    _write_lines(
        folder / "warm_start.jsonl",
        [
            {"step": i + 1, "loss": 6.9 * math.exp(-i / 40) + random.gauss(0, 0.05)}
            for i in range(60)
        ],
    )
    for step in range(1, steps + 1) if story_steps is None else story_steps:
        rows = _rows(random, step, (step - 1) / max(1, steps - 1))
        _write_lines(folder / "stories" / f"step-{step:06d}.jsonl", rows)
    if evals:
        for name, step, skill in (("start", 0, 0.0), ("end", steps, 0.9)):
            (folder / f"eval-{name}.json").write_text(json.dumps(_eval(random, step, skill)))
    if status is not None:
        summary = {"status": status, "steps": steps, "wall_s": 3.4 * steps + 31.0}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def _metrics(random: Random, index: int, steps: int, kl: bool) -> dict[str, Any]:
    x = index / max(1, steps - 1)
    skill = 1 - math.exp(-3 * x)
    noise = random.gauss
    log_ratio = max(0.05, 1.02 - 0.66 * skill + noise(0, 0.05))
    length = max(0.0, min(1.0, 0.18 + 0.5 * skill + noise(0, 0.03)))
    quality = 0.09 + 0.05 * skill + noise(0, 0.015)
    human = index > 0  # at the first step the ramp's weight is 0: rollouts only
    rollout, judged, trained = 1.5 + noise(0, 0.1), abs(noise(0.2, 0.1)), 1.1 + noise(0, 0.06)
    row: dict[str, Any] = {
        "step": index + 1,
        "epoch": (index + 1) / 9,
        "loss": noise(0, 0.02),
        "policy/loss": noise(0, 0.02),
        "hri/loss": 0.3 * (1 - 0.5 * skill) + noise(0, 0.02) if human else None,
        "learning_rate": 1e-3,
        "grad_norm": abs(0.9 - 0.3 * skill + noise(0, 0.15)) + (4.0 if index == 30 else 0.0),
        "reward": quality + length - 0.6 + noise(0, 0.02),
        "reward_std": 0.3 + noise(0, 0.03),
        "frac_reward_zero_std": 0.125 if index % 11 == 3 else 0.0,
        "reward/quality": quality,
        "reward/length_score": length,
        "reward/self_repetition": max(0.0, 0.06 - 0.03 * skill + noise(0, 0.01)),
        "reward/blank_penalty": max(0.0, 0.06 * (1 - skill) + noise(0, 0.01)),
        "completions/mean_length": 120 - 40 * skill + noise(0, 5),
        "completions/min_length": 20,
        "completions/max_length": 190,
        "completions/clipped_ratio": max(0.0, 0.06 - 0.05 * skill + noise(0, 0.01)),
        "length/abs_log_ratio": log_ratio,
        "length/ratio": 1.9 - 0.85 * skill + noise(0, 0.08),
        "length/within_20": min(1.0, max(0.0, 0.12 + 0.32 * skill + noise(0, 0.05))),
        "length/words": 62 - 18 * skill + noise(0, 3),
        "clip_ratio/low_mean": abs(noise(0.001, 0.0005)),
        "clip_ratio/high_mean": abs(noise(0.002, 0.001)),
        "clip_ratio/region_mean": abs(noise(0.003, 0.001)),
        "entropy": 3.6 - 0.9 * skill + noise(0, 0.05),
        "hri/weight": 0.4 * min(1, index / 15),
        "groups/trained": 7 if index % 11 == 3 else 8,
        "groups/dropped_zero_spread": 1 if index % 11 == 3 else 0,
        "groups/dropped_too_few_scored": 0,
        "rows/failed": 1 if index % 17 == 5 else 0,
        "guard/skipped": 1 if index == 30 else 0,
        "judge/scored": 48,
        "judge/failed": 1 if index % 17 == 5 else 0,
        "judge/failures/timeout": 1 if index % 17 == 5 else 0,
        "judge/dim/P1": 4.0 + noise(0, 0.2),
        "judge/retries": 2 if index % 17 == 5 else 0,
        "judge/latency_s/p50": 0.004 + abs(noise(0, 0.001)),
        "judge/latency_s/p95": 0.011 + abs(noise(0, 0.002)),
        "perf/step_s": rollout + judged + trained + 0.2,
        "perf/rollout_s": rollout,
        "perf/judge_exposed_s": judged,
        "perf/train_s": trained,
        "perf/optimizer_s": 0.05,
        "perf/other_s": 0.15,
        "perf/tokens_per_s": 2400 + noise(0, 90),
        "perf/rollout_tokens_per_s": 3600 + noise(0, 150),
        "num_tokens": 7000 * (index + 1),
    }
    if human:
        row["hri/gap"] = 0.75 - 0.45 * skill + noise(0, 0.04)
        row["hri/human_wins"] = min(1.0, 0.96 - 0.3 * skill + noise(0, 0.04))
    if kl:
        row["kl"] = 0.3 * skill + abs(noise(0, 0.01))
    return row


def _rows(random: Random, step: int, skill: float) -> list[dict[str, Any]]:
    rows = []
    for group in range(8):
        for slot in range(6):
            human = slot == 5 and step > 1
            rows.append(_row(random, f"{step}/{group}/{slot}", group, slot, skill, human))
    failed = random.randrange(40)
    if not rows[failed]["kind"] == "human":
        rows[failed].update(
            outcome="failed", reason="timeout after 4 attempts", quality=None, reward=None
        )
    return rows


def _row(
    random: Random, row_id: str, group: int, slot: int, skill: float, human: bool
) -> dict[str, Any]:
    target = (20, 30, 40, 50, 60)[group % 5]
    spread = 0.12 if human else 0.95 - 0.62 * skill
    words = max(
        3, round(target * math.exp(random.gauss(0.0 if human else 0.5 * (1 - skill), spread)))
    )
    story = write_story(random, words)
    error = abs(math.log(words / target))
    score = 1.0 if error <= 0.1 else max(0.0, (0.7 - error) / 0.6)
    quality = 0.3 if human else 0.1 + 0.05 * skill + random.gauss(0, 0.05)
    repetition = abs(random.gauss(0.02, 0.03))
    total = score * max(quality, 0) + min(quality, 0) - (1 - score) - 1.5 * repetition
    return {
        "row_id": row_id,
        "group": group,
        "slot": slot,
        "kind": "human" if human else "policy",
        "uid": f"sample-{group:03d}",
        "prompt": PROMPTS[group],
        "target_word_count": target,
        "thinking": "",
        "story": story,
        "finish_reason": None if human else ("length" if words > 110 else "stop"),
        "num_tokens": round(words * 1.6) + 24,
        "outcome": "scored",
        "reason": None,
        "quality": quality,
        "dimensions": {"P1": 4.0, "P2": 3.0},
        "reward": {
            "total": total,
            "quality": quality,
            "length_score": score,
            "self_repetition": repetition,
            "blank_penalty": 0.0,
            "words": words,
        },
        "advantage": random.gauss(0, 1),
        "trained": True,
    }


def write_story(random: Random, words: int) -> str:
    """About-plausible prose of exactly `words` words, with a paragraph now and then."""
    parts = [random.choice(OPENINGS)]
    while len(" ".join(parts).split()) < words:
        joint = "\n\n" if len(parts) % 4 == 0 else " "
        parts.append(joint + random.choice(MIDDLES))
    text = " ".join(parts[:-1]) + " " + random.choice(ENDINGS)
    pieces, count = [], 0
    for piece in text.replace("\n\n", " \n\n ").split(" "):
        pieces.append(piece)
        count += bool(piece.strip())
        if count == words:
            break
    missing = " ".join(["again"] * (words - count))
    whole = " ".join(pieces).replace(" \n\n ", "\n\n") + (f" {missing}" if missing else "")
    return whole.rstrip(".,") + "."


def _eval(random: Random, step: int, skill: float) -> dict[str, Any]:
    stories = [
        _row(random, f"eval/{g}/{s}", g, s, skill, human=False) for g in range(8) for s in range(4)
    ]
    errors = [abs(math.log(r["reward"]["words"] / r["target_word_count"])) for r in stories]

    def mean(key: str) -> float:
        return sum(row["reward"][key] for row in stories) / len(stories)

    return {
        "step": step,
        "num_prompts": 8,
        "num_stories": 32,
        "metrics": {
            "eval/reward": mean("total"),
            "eval/quality": mean("quality"),
            "eval/length_score": mean("length_score"),
            "eval/length/abs_log_ratio": sum(errors) / len(errors),
            "eval/length/within_20": sum(e < math.log(1.2) for e in errors) / len(errors),
        },
        "stories": stories,
    }


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    from polaris_fast.report import write_report

    made = build_run_folder(Path(sys.argv[1]), steps=int(sys.argv[2]) if sys.argv[2:] else 60)
    print(write_report(made))
