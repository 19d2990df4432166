"""What an evaluation found, as one JSON value: the table, the page and the plots read nothing else.

evaluation.json    settings, and model -> measure -> bucket -> estimate with its interval
measures.jsonl     one line a story: its model, its place, every value
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..types import Outcome, Scored, UserError
from .judging import quality_points
from .measures import MEASURES, measure_siblings, measure_text
from .overlap import ReferenceIndex
from .reference import reference
from .setup import Setup
from .summary import Measured, summarize_models, to_json
from .writing import Written

RESULT_FILE, STORY_FILE = "evaluation.json", "measures.jsonl"
VERSION = 1

Stories = Mapping[str, Sequence[Written]]


def measure_all(
    setup: Setup,
    stories: Stories,
    outcomes: Mapping[tuple[str, str], Outcome],
    s_q: Mapping[tuple[str, str], float],
) -> dict[str, list[Measured]]:
    """Every value of every story."""
    counter = setup.config.reward.word_counter
    references = None
    if setup.training:
        references = ReferenceIndex(record.story or "" for record in setup.training)
    found: dict[str, list[Measured]] = {}
    for name, written in stories.items():
        siblings = _sibling_values(written)
        found[name] = []
        for one in written:
            place = (name, one.item)
            values = measure_text(one.story, one.target, counter=counter, references=references)
            values |= siblings[one.item]
            values["truncated"] = float(one.truncated)
            if setup.config.data.thinking:
                values["thinking_words"] = float(len(one.thinking.split()))
            quality = quality_points(outcomes[place]) if place in outcomes else None
            if quality is not None:
                values["quality"] = quality
            if place in s_q:
                values["s_q"] = s_q[place]
                values["s"] = (values["s_l"] + s_q[place]) / 2
            found[name].append(Measured(one, values))
    return found


def build_result(
    setup: Setup,
    measured: Mapping[str, Sequence[Measured]],
    outcomes: Mapping[tuple[str, str], Outcome],
    *,
    notes: Sequence[str],
    pairwise: dict[str, Any],
    memorisation: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """The whole result."""
    summaries = summarize_models(measured, setup.buckets, seed=setup.config.seed)
    targets = [task.record.target_word_count for task in setup.tasks]
    return {
        "version": VERSION,
        "settings": _settings(setup),
        "notes": list(notes),
        "buckets": setup.buckets.labels(targets),
        "paper_buckets": setup.buckets.are_the_papers,
        "models": [
            {
                "name": model.name,
                "path": model.path,
                "fingerprint": model.fingerprint,
                "num_stories": len(measured[model.name]),
                "num_empty": sum(not m.written.story.strip() for m in measured[model.name]),
                "num_unjudged": sum(
                    name == model.name and not isinstance(outcome, Scored)
                    for (name, _), outcome in outcomes.items()
                ),
                "measures": {k: to_json(s) for k, s in summaries[model.name].items()},
            }
            for model in setup.models
        ],
        "pairwise": pairwise,
        "memorisation": dict(memorisation),
        "reference": reference(),
    }


def write_result(out: Path, result: dict[str, Any], measured: Mapping[str, Any]) -> Path:
    """Write both files whole; returns the path of the result."""
    lines = [
        {
            "model": name,
            "item": one.written.item,
            "uid": one.written.uid,
            "target_word_count": one.written.target,
            **{key: one.values[key] for key in MEASURES if key in one.values},
        }
        for name, found in measured.items()
        for one in found
    ]
    write_whole(out / STORY_FILE, "".join(json.dumps(line) + "\n" for line in lines))
    write_whole(out / RESULT_FILE, json.dumps(result, indent=1) + "\n")
    return out / RESULT_FILE


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        UserError: the disk is full or not writable.
    """
    draft = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a sampled text may hold half of a surrogate pair, which UTF-8 cannot say
        draft.write_bytes(text.encode("utf-8", errors="replace"))
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(
            f"--out: {path} cannot be written ({error.strerror}); make room or give another folder"
        ) from error


def _sibling_values(written: Sequence[Written]) -> dict[str, dict[str, float]]:
    """Item -> what its story has in common with the others of its prompt and length."""
    groups: dict[tuple[str, int], list[Written]] = defaultdict(list)
    for one in written:
        groups[one.uid, one.target].append(one)
    found: dict[str, dict[str, float]] = {}
    for group in groups.values():
        values = measure_siblings([one.story for one in group])
        found |= {one.item: value for one, value in zip(group, values, strict=True)}
    return found


def _settings(setup: Setup) -> dict[str, Any]:
    options, config = setup.options, setup.config
    sampling = setup.writers[0].sampling
    return {
        "data": options.data or config.data.path or "the bundled samples",
        "held_out": setup.held_out,
        "num_prompts": len({task.record.uid for task in setup.tasks}),
        "samples": 1 + max(task.sample for task in setup.tasks),
        "words": options.words,
        "seed": config.seed,
        "engine": config.rollout.engine,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
        "thinking": bool(config.data.thinking),
        "word_counter": config.reward.word_counter,
        "judge": config.judge.model if options.judge else None,
        "judge_is_local": options.judge and config.judge.base_url is None,
        "judge_samples": options.judge_samples,
    }
