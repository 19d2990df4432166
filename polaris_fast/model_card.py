"""The model card of a finished run: `README.md` in its last checkpoint, in the hub's form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .config import Config

CARD_FILE = "README.md"
# Evaluation metrics of the table, with the names that people read.
_MEASURES = (
    ("eval/reward", "reward"),
    ("eval/quality", "quality (judge's score / 100)"),
    ("eval/length/abs_log_ratio", "length error, mean abs ln(words / target)"),
    ("eval/length/within_20", "share of stories within 20 % of the target"),
    ("eval/self_repetition", "self-repetition"),
    ("eval/completions/clipped_ratio", "share cut off by the token limit"),
)


def write_model_card(checkpoint: Path, config: Config, *, steps: int, num_records: int) -> Path:
    """Write the card beside the weights; numbers come from the run's own evaluation files.

    Args:
        checkpoint: the folder of the finished run that people will load.
        config: the run's resolved configuration.
        steps: optimizer steps done.
        num_records: training prompts.
    """
    text = f"{_front_matter(config)}\n{_body(checkpoint, config, steps, num_records)}"
    path = checkpoint / CARD_FILE
    path.write_text(text, encoding="utf-8")
    return path


def _front_matter(config: Config) -> str:
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["grpo", "creative-writing", "long-form", "polaris_fast"],
    }
    if config.model_name_or_path is not None and not Path(config.model_name_or_path).exists():
        fields["base_model"] = config.model_name_or_path  # a folder's name means nothing elsewhere
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _body(checkpoint: Path, config: Config, steps: int, num_records: int) -> str:
    run = checkpoint.parent
    lines = [
        f"# {config.run_name or run.resolve().name}",
        "",
        "Trained to write stories of a requested length with polaris_fast: GRPO with rewards from "
        + ("a function" if config.reward.function else "a judge")
        + (" and human reference stories." if config.hri.mode != "off" else "."),
        "",
        *_table("Training", _training(config, steps, num_records)),
        *_evaluation(run),
        *_limits(config),
    ]
    return "\n".join(lines)


def _training(config: Config, steps: int, num_records: int) -> Iterator[tuple[str, str]]:
    yield "base model", config.model_name_or_path or "embedded tiny Qwen3.5, built by the run"
    yield "steps", f"{steps:,}, {config.prompts_per_step} prompts of {config.num_generations} rows"
    yield "prompts", f"{num_records:,} from {_source(config)}"
    yield "loss", f"{config.loss_type}, learning rate {config.learning_rate:g}, KL {config.beta:g}"
    yield "human references", _hri(config)
    yield "judge", _judge(config)
    yield "length reward", config.reward.length_reward
    yield "trained weights", f"LoRA, rank {config.lora.r}" if config.lora.r else "all"
    yield "precision", config.dtype
    yield "seed", str(config.seed)


def _source(config: Config) -> str:
    if config.data.path is None:
        return "the bundled samples"
    return f"`{Path(config.data.path).name}`"


def _hri(config: Config) -> str:
    if config.hri.mode == "off":
        return "none"
    if config.hri.mode == "luffy":
        return "in the group's statistics (LUFFY)"
    return f"weight {config.hri.weight:g} after {config.hri.warmup_steps} steps"


def _judge(config: Config) -> str:
    if config.reward.function is not None:
        return f"none; the reward is the function `{config.reward.function}`"
    if config.judge.base_url is None:
        return "text-statistics heuristic, no judge of quality"
    return config.judge.model


def _evaluation(run: Path) -> list[str]:
    """Held-out prompts before and after, as far as the run looked at them."""
    found = {name: _metrics(run / f"eval-{name}.json") for name in ("start", "end")}
    if not found["end"]:
        return ["No held-out prompts were evaluated.", ""]
    rows = []
    for key, label in _MEASURES:
        if key in found["end"]:
            before = found["start"].get(key)
            told = f"{before:.3f} | " if before is not None else "- | "
            rows.append((label, f"{told}{found['end'][key]:.3f}"))
    table = [f"| {label} | {values} |" for label, values in rows]
    return ["## Held-out prompts", "", "| | before | after |", "| --- | --- | --- |", *table, ""]


def _metrics(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    metrics: dict[str, float] = json.loads(path.read_text())["metrics"]
    return metrics


def _limits(config: Config) -> list[str]:
    lines = [
        "## Limits",
        "",
        "- Quality is what one judge thought of it. Evaluate with another judge, and read stories.",
        "- A model trained on stories can repeat them; `polaris evaluate --memorisation` looks "
        "for that.",
    ]
    if config.judge.base_url is None and config.reward.function is None:
        lines.append("- No language model judged these stories: this run checks the training loop.")
    return [*lines, ""]


def _table(heading: str, rows: Iterator[tuple[str, str]]) -> list[str]:
    table = [f"| {name} | {value} |" for name, value in rows]
    return [f"## {heading}", "", "| | |", "| --- | --- |", *table, ""]
