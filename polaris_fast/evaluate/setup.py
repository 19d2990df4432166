"""Everything that is read and checked before the first token: models, settings, prompts, limits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import Config, DataConfig
from ..config_file import load_config
from ..data import load_records, split_records, with_thinking
from ..device import choose_device
from ..judge_presets import find_preset
from ..prompts import load_tokenizer
from ..rollout.vllm.launcher import require_vllm
from ..run_folder import CONFIG_FILE
from ..types import StoryRecord, UserError
from .buckets import Buckets, choose_buckets
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
    training: list[StoryRecord]  # with their stories; none where they are not known
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
    records, training, held_out = _records(options, config)
    notes = _data_notes(options, records, training, held_out=held_out)
    config = config.model_copy(update={"data": with_thinking(config.data, [*training, *records])})
    tasks = make_tasks(
        records,
        words=options.words,
        num_prompts=options.num_prompts,
        num_samples=options.samples if options.samples is not None else config.num_eval_generations,
        seed=config.seed,
    )
    attacked = []
    if options.memorisation:
        attacked = choose_attacked(training, options.attack, options.memorisation)
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
        training=training,
        attacked=attacked,
        held_out=held_out,
        notes=[*notes, *_bucket_notes(buckets, tasks), *_judge_notes(options, config, models)],
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


def _records(options: Options, config: Config) -> tuple[list[StoryRecord], list[StoryRecord], bool]:
    """(prompts to evaluate, training stories, whether the prompts are the run's held-out ones)."""
    train, held_out = _split(config, needed=options.data is None)
    records = held_out or train
    if options.data is not None:
        records, held_out = load_records(_whole(options.data, config)), []
    if options.train_data is not None:
        train = load_records(_whole(options.train_data, config))
    training = [record for record in train if record.story is not None]
    if options.memorisation and not training:
        raise UserError("--memorisation: no training stories are known; name them: --train-data")
    return records, training, bool(held_out)


def _data_notes(
    options: Options,
    records: Sequence[StoryRecord],
    training: Sequence[StoryRecord],
    *,
    held_out: bool,
) -> list[str]:
    notes = []
    known = {key for record in training for key in (record.uid, record.prompt)}
    seen = sum(record.uid in known or record.prompt in known for record in records)
    if options.data is not None and seen:
        notes.append(
            f"{seen} of the {len(records)} prompts of {options.data} are training prompts: what "
            "was learned by heart counts as a gain; name others with --data"
        )
    if options.data is None and not held_out:
        notes.append(
            "no held-out prompts in the run's data: the training prompts are evaluated; name "
            "others with --data"
        )
    if not training:
        notes.append("no training stories are known: overlap is left out; name them: --train-data")
    return notes


def _split(config: Config, *, needed: bool) -> tuple[list[StoryRecord], list[StoryRecord]]:
    """(training, held-out) records of the configuration; none where they are no longer there."""
    try:
        return split_records(config.data, load_records(config.data))
    except UserError:
        if needed:
            raise
        return [], []


def _whole(path: str, config: Config) -> DataConfig:
    """All records of a path: the run's filters and its own split are for its own data."""
    unfiltered = {"min_target_words": None, "max_target_words": None}
    return config.data.model_copy(
        update={"path": path, "eval_path": None, "eval_fraction": 0.0, **unfiltered}
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
