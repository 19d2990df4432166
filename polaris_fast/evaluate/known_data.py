"""Which prompts are evaluated, and which stories the models are known to have been trained on.

Training stories are known by --train-data, by a configuration or --data.path that names data, or by
the runs that the models lie in. The bundled samples, which a configuration without data stands for,
are the training stories of a run alone: no other model has seen them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import Config, DataConfig
from ..config_file import load_config
from ..data import content_of, load_records, split_records
from ..run_folder import CONFIG_FILE
from ..types import StoryRecord, UserError
from .models import ModelRef
from .options import Options

Records = list[StoryRecord]


@dataclass(frozen=True)
class KnownData:
    """What an evaluation knows of prompts and training stories."""

    records: Records  # to be written for
    training: Records  # one set for all models, with their stories; none where it is not known
    thinking: Records  # those that settle `data.thinking` where the configuration does not
    held_out: bool  # whether the prompts are those that a run or a configuration holds out
    notes: list[str]


def find_data(options: Options, config: Config, models: Sequence[ModelRef]) -> KnownData:
    """Read the prompts and the training stories.

    Args:
        config: of the evaluation.

    Raises:
        UserError: records cannot be read, or the stories that --memorisation needs are not known.
    """
    own = _training_sets(options, config, models)
    if options.data is not None:
        records, held_out = load_records(_whole(options.data, config)), False
    else:
        train, kept = split_records(config.data, load_records(config.data))
        records, held_out = kept or train, bool(kept) and bool(own)
    sets = own
    if options.train_data is not None:
        sets = [load_records(_whole(options.train_data, config))]
    told = [[record for record in one if record.story is not None] for one in sets]
    differ = len({frozenset(content_of(record) for record in one) for one in told}) > 1
    training = told[0] if told and not differ else []
    if options.memorisation and not training:
        which = "the runs do not share them" if differ else "none are known"
        raise UserError(
            f"--memorisation: needs training stories, and {which}; name them: --train-data"
        )
    return KnownData(
        records=records,
        training=training,
        thinking=[record for one in own for record in one] or records,
        held_out=held_out,
        notes=[
            *_source_notes(options, is_known=bool(own), held_out=held_out),
            *_seen_notes(options, records, sets, held_out=held_out),
            *_training_notes(training, differ=differ),
        ],
    )


def _training_sets(
    options: Options, config: Config, models: Sequence[ModelRef]
) -> list[list[StoryRecord]]:
    """One set where the options name data, else one a run; none without either."""
    names_data = options.config is not None or "data.path" in options.overrides
    if names_data and config.data.path is not None:
        return [_train_split(config)]
    runs = dict.fromkeys(model.run_dir for model in models if model.run_dir is not None)
    return [_run_training(run, options) for run in runs]


def _run_training(run: Path, options: Options) -> Records:
    overrides = {k: v for k, v in options.overrides.items() if k.startswith("data.")}
    try:
        return _train_split(load_config(run / CONFIG_FILE, overrides))
    except UserError:  # of another version: its stories are not known
        return []


def _train_split(config: Config) -> Records:
    """The training records of a configuration; none where they are no longer there."""
    try:
        return split_records(config.data, load_records(config.data))[0]
    except UserError:
        return []


def _whole(path: str, config: Config) -> DataConfig:
    """All records of a path: the run's filters and its own split are for its own data."""
    unfiltered = {"min_target_words": None, "max_target_words": None}
    return config.data.model_copy(
        update={"path": path, "eval_path": None, "eval_fraction": 0.0, **unfiltered}
    )


def _source_notes(options: Options, *, is_known: bool, held_out: bool) -> list[str]:
    """Prompts that nobody has chosen."""
    if options.data is not None or held_out:
        return []
    if not is_known:
        return ["no run and no --data: the prompts are of the bundled samples; name your own"]
    return [
        "no held-out prompts in the run's data: the training prompts are evaluated; name others "
        "with --data"
    ]


def _seen_notes(
    options: Options, records: Records, sets: Sequence[Records], *, held_out: bool
) -> list[str]:
    """Prompts that a model was trained on, known by prompt or story, or in data of one's own by
    uid: held-out records of a file of their own may be numbered as the training ones are."""
    if options.data is None and not held_out:
        return []

    def keys(record: StoryRecord) -> list[str | tuple[str, str]]:
        uid = [record.uid] if options.data is not None else []
        return [*uid, record.prompt, content_of(record)]

    known = {key for one in sets for record in one for key in keys(record)}
    seen = sum(not known.isdisjoint(keys(record)) for record in records)
    if not seen:
        return []
    where = options.data or "the run's held-out data"
    return [
        f"{seen} of the {len(records)} prompts of {where} are training prompts: what was learned "
        "by heart counts as a gain; name others with --data"
    ]


def _training_notes(training: Records, *, differ: bool) -> list[str]:
    if training:
        return []
    if differ:
        return [
            "the runs do not share their training stories, as far as is known: overlap is left "
            "out; name stories for all models: --train-data"
        ]
    return ["no training stories are known: overlap is left out; name them: --train-data"]
