"""Small real runs for tests: a tiny model in a folder, and the command line in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polaris_fast.cli import main

SMALL = {
    "dtype": "float32",
    "max_steps": "2",
    "prompts_per_step": "2",
    "num_generations": "4",
    "max_completion_length": "96",
    "max_prompt_length": "128",
    "learning_rate": "1e-3",
    "save_steps": "1",
    "save_total_limit": "null",
    "eval_on_start": "false",
    "eval_on_end": "false",
    "report_to": "[]",
    "progress": "false",
    "data.max_target_words": "30",
    "data.eval_fraction": "0",
    "hri.warmup_steps": "0",
    "hri.num_judge_samples": "1",
    "embedded.warm_start_steps": "2",
}


def train(output_dir: Path, **overrides: Any) -> int:
    """`polaris train` with small settings; keys with a dot are written with `__`."""
    keys = {k.replace("__", "."): str(v) for k, v in overrides.items()}
    settings = SMALL | {"output_dir": str(output_dir)} | keys
    if "resume_from_checkpoint" not in keys:
        settings = {"config": "default_cpu"} | settings
    return main(["train", *(f"--{key}={value}" for key, value in settings.items())])


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def exact(run: Path) -> list[dict[str, Any]]:
    """The metrics that a resumed run must repeat bit for bit: all but clocks and the judge's."""
    return [
        {k: v for k, v in line.items() if not k.startswith(("perf/", "judge/"))}
        for line in metrics_of(run)
    ]
