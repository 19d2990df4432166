"""Held-out prompts, before and after training: the same seeds, so the same luck."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import Config
from ..groups import row_seed
from ..progress import Progress
from ..prompts import PromptBuilder
from ..rollout import RolloutEngine, RolloutRequest, SamplingParams
from ..scoring import StepScorer
from ..step_metrics import length_metrics, reward_metrics
from ..story_log import row_to_dict
from ..types import Failed, Group, Rejected, RewardParts, Row, RowKind, StoryRecord
from .measures import measure_siblings, measure_text


def evaluate(
    records: Sequence[StoryRecord],
    config: Config,
    *,
    step: int,
    rollouts: RolloutEngine,
    builder: PromptBuilder,
    scorer: StepScorer,
    view: Progress,
    check_stop: Callable[[], None],
) -> dict[str, Any]:
    """Write `num_eval_generations` stories a prompt, score them, and average.

    Returns:
        step, num_prompts, num_stories, num_scored, metrics (`eval/...`), stories (as in the story
        log).
    """
    groups = [_group(i, record, config, builder, step) for i, record in enumerate(records)]
    rows = [row for group in groups for row in group.rows]
    sampling = SamplingParams.from_config(config, builder.stop_ids)
    if config.eval_temperature is not None:
        sampling = replace(sampling, temperature=config.eval_temperature)
    view.phase("evaluating", len(rows))

    def finish(index: int, completion: Any) -> None:
        row = rows[index]
        row.completion_ids = completion.completion_ids
        row.finish_reason = completion.finish_reason
        row.thinking, row.story = builder.decode(completion.completion_ids)
        scorer.submit(row)
        view.advance(1, phase="evaluating")

    rollouts.generate(
        [RolloutRequest(tuple(r.prompt_ids), _seed(r, config)) for r in rows],
        sampling,
        finish,
        lambda alive: check_stop(),
    )
    for _ in scorer.ready_groups(groups, fixed_order=True, may_stop=False):
        pass
    lost = [row.outcome for row in rows if isinstance(row.outcome, Failed | Rejected)]
    if lost:
        view.warn(
            f"evaluation at step {step}: {len(lost)} of {len(rows)} stories could not be scored "
            f"(first reason: {lost[0].reason}); the judge's means are over the others"
        )
    return {
        "step": step,
        "num_prompts": len(records),
        "num_stories": len(rows),
        "num_scored": len(rows) - len(lost),
        "metrics": _named(_all_metrics(groups, rows, config)),
        "stories": [row_to_dict(row) for row in rows],
    }


def write_evaluation(run_dir: Path, name: str, result: dict[str, Any]) -> None:
    """Write `eval-NAME.json`."""
    path = run_dir / f"eval-{name}.json"
    draft = path.with_suffix(".partial")
    # a sampled text may hold half of a surrogate pair, which UTF-8 cannot say
    draft.write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8", errors="replace")
    draft.replace(path)


def known_metrics(config: Config) -> list[str]:
    """Names of the metrics of an evaluation, found by measuring two made-up stories."""
    record = StoryRecord("known", "prompt", 4)
    parts = RewardParts(0.0, 0.0, 0.0, 0.0, 0.0, words=4)
    rows = [
        Row(f"known/{i}", 0, i, RowKind.POLICY, record, [0], story="a b c d", reward=parts)
        for i in range(2)
    ]
    group = Group(index=0, record=record, rows=rows)
    return sorted(_named(_all_metrics([group], rows, config)))


def _all_metrics(groups: Sequence[Group], rows: Sequence[Row], config: Config) -> dict[str, float]:
    return {**reward_metrics(rows), **length_metrics(rows), **_text_metrics(groups, config)}


def _named(metrics: dict[str, float]) -> dict[str, float]:
    return {f"eval/{name.removeprefix('reward/')}": v for name, v in metrics.items()}


def _text_metrics(groups: Sequence[Group], config: Config) -> dict[str, float]:
    """Means of the measures that need no judge, `text/...`, over the stories that have them."""
    counter = config.reward.word_counter
    found: dict[str, list[float]] = {}
    for group in groups:
        stories = [row.story for row in group.rows]
        for story, siblings in zip(stories, measure_siblings(stories), strict=True):
            target = group.record.target_word_count
            values = measure_text(story, target, counter=counter) | siblings
            for key, value in values.items():
                found.setdefault(f"text/{key}", []).append(value)
    return {key: statistics.fmean(values) for key, values in found.items()}


def _group(
    index: int, record: StoryRecord, config: Config, builder: PromptBuilder, step: int
) -> Group:
    """Named by the step, too: what befell the stories of one evaluation is not the next one's."""
    prompt_ids = builder.prompt_ids(record)
    rows = [
        Row(f"eval/{step}/{record.uid}/{slot}", index, slot, RowKind.POLICY, record, prompt_ids)
        for slot in range(config.num_eval_generations)
    ]
    return Group(index=index, record=record, rows=rows)


def _seed(row: Row, config: Config) -> int:
    """The same in every evaluation of a run: the same luck."""
    return row_seed(config.seed, f"eval/{row.record.uid}/{row.slot}")
