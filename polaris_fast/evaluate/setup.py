"""Everything that is read and checked before the first token: models, settings, prompts, limits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..config_file import load_config
from ..data import with_thinking
from ..device import choose_device
from ..judge_presets import find_preset
from ..prompts import load_tokenizer
from ..rollout.vllm.launcher import require_vllm
from ..run_folder import CONFIG_FILE
from ..types import StoryRecord, UserError
from .buckets import Buckets, choose_buckets
from .known_data import find_data
from .memorisation import choose_attacked
from .models import (
    ModelRef,
    find_models,
    run_settings,
    stop_ids_at,
    with_fingerprints,
)
from .options import Options
from .tasks import Task, make_tasks
from .writing import ROOM, Writer, make_writer

# The paper's validation sampling, for models that no run of ours has made.
_VALIDATION = {"temperature": "0.8", "top_p": "0.95"}
ENOUGH_PROMPTS = 10  # in a bucket, for an interval that means something
JOURNAL = "judge_journal.sqlite"


@dataclass(frozen=True)
class Setup:
    """What an evaluation works with."""

    options: Options
    config: Config
    models: list[ModelRef]
    writers: list[Writer]
    tasks: list[Task]
    buckets: Buckets
    training: list[StoryRecord]  # one set for all models; none where it is not known
    attacked: list[StoryRecord]  # of them, those of the prefix attack
    held_out: bool  # whether the prompts are those that the run held out
    notes: list[str]  # what a person should know

    @property
    def out(self) -> Path:
        """The folder of everything written."""
        return Path(self.options.out)


def prepare(options: Options) -> Setup:
    """Read and check; loads tokenizers, no weights, and asks nobody.

    Raises:
        UserError: names the option or setting, its value and the remedy.
    """
    models = find_models(options.models)
    config = _config(options, models)
    _check_engine(config, models)
    _check_judge_key(options, config)
    data = find_data(options, config, models)
    config = config.model_copy(update={"data": with_thinking(config.data, data.thinking)})
    tasks = make_tasks(
        data.records,
        words=options.words,
        num_prompts=options.num_prompts,
        num_samples=options.samples if options.samples is not None else config.num_eval_generations,
        seed=config.seed,
    )
    attacked = []
    if options.memorisation:
        attacked = choose_attacked(data.training, options.attack, options.memorisation)
    buckets = choose_buckets([t.record.target_word_count for t in tasks], options.buckets)
    models = with_fingerprints(models)  # minutes for large ones: after all that is cheap
    given = options.overrides.get("max_completion_length")
    writers = [
        make_writer(
            model,
            load_tokenizer(model.path),
            config,
            tasks,
            stop_ids=stop_ids_at(model.path),
            limit=config.max_completion_length if given not in (None, "null") else None,
            extra_tokens=_attack_tokens(options, len(attacked)),
        )
        for model in models
    ]
    return Setup(
        options=options,
        config=config,
        models=models,
        writers=writers,
        tasks=tasks,
        buckets=buckets,
        training=data.training,
        attacked=attacked,
        held_out=data.held_out,
        notes=[*data.notes, *_bucket_notes(buckets, tasks), *_judge_notes(options, config, models)],
    )


def _config(options: Options, models: Sequence[ModelRef]) -> Config:
    """The named configuration, that of the first model's run, or the defaults; one for all."""
    runs = [model.run_dir for model in models if model.run_dir is not None]
    overrides = dict(options.overrides)
    path: str | Path | None = options.config
    if path is None and runs:
        path = runs[0] / CONFIG_FILE
    elif path is None:
        overrides = _VALIDATION | overrides
    config = load_config(path, overrides)
    if config.judge.journal is None:
        journal = str(Path(options.out).resolve() / JOURNAL)
        judge = config.judge.model_copy(update={"journal": journal})
        config = config.model_copy(update={"judge": judge})
    return config


def _check_engine(config: Config, models: Sequence[ModelRef]) -> None:
    choose_device(config)
    if config.rollout.engine != "vllm":
        return
    if config.rollout.vllm.launch:
        require_vllm()
    elif len(models) > 1:
        raise UserError(
            f"rollout.vllm.base_urls: these servers hold one model, and {len(models)} are to be "
            "evaluated; set rollout.vllm.launch to true, or evaluate one after the other with the "
            "same --out"
        )


def _check_judge_key(options: Options, config: Config) -> None:
    """A provider that is known to want a key gets one; the endpoint is asked later."""
    judge = config.judge
    if not options.judge or judge.base_url is None:
        return
    preset = find_preset(judge.base_url, judge.preset)
    if preset is not None and preset.hosts and not os.environ.get(judge.api_key_env, "").strip():
        raise UserError(
            f"judge.api_key_env: the variable {judge.api_key_env} is not set, and {preset.name} "
            "asks for a key; export it, name another one, or leave the judge out with --no-judge"
        )


def _bucket_notes(buckets: Buckets, tasks: Sequence[Task]) -> list[str]:
    """Buckets whose intervals rest on few prompts."""
    prompts: dict[str, set[str]] = {}
    for task in tasks:
        label = buckets.label(task.record.target_word_count)
        prompts.setdefault(label, set()).add(task.record.uid)
    few = min(prompts, key=lambda label: len(prompts[label]))
    if len(prompts[few]) >= ENOUGH_PROMPTS:
        return []
    return [
        f"prompts in the bucket {few}: {len(prompts[few])}; intervals of so few are rough and "
        "mostly too narrow; give more prompts, or wider --buckets"
    ]


def _attack_tokens(options: Options, num_attacked: int) -> int:
    """Room in a launched server for a prefix and its continuation beside the longest prompt."""
    attack = options.attack
    return int(2 * ROOM * attack.prefix_words) + attack.max_tokens if num_attacked else 0


def _judge_notes(options: Options, config: Config, models: Sequence[ModelRef]) -> list[str]:
    """Advice on the choice of the judge."""
    judge, notes = config.judge, []
    if not options.judge:
        return []
    for model in models:
        trained = run_settings(model)
        used = (trained.get("base_url"), trained.get("model"))
        if Path(model.path).name.startswith("checkpoint-") and used == (
            judge.base_url,
            judge.model,
        ):
            notes.append(
                f"{model.name} was trained on this judge ({judge.model}): its scores may show what "
                "was learned about the judge; take one of another family with --judge.base_url and "
                "--judge.model"
            )
            break
    if judge.base_url is None:
        if options.dimensions:
            notes.append("--dimensions: the local judge knows no such dimensions; S_Q is left out")
        if options.pairwise:
            notes.append(
                "--pairwise: the local judge cannot compare; its pointwise scores are compared"
            )
    return notes
