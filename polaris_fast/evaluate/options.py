"""The command line of `polaris evaluate`, read and checked before anything is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..cli import parse_overrides
from ..types import UserError
from .memorisation import Attack

LATEST = Path("runs") / "latest"
DEFAULT_OUT = "evaluation"
DEFAULT_ATTACKED = 20


@dataclass(frozen=True)
class Options:
    """What to evaluate, and how."""

    models: list[str]
    data: str | None = None
    train_data: str | None = None
    out: str = DEFAULT_OUT
    config: str | None = None
    words: list[int] | None = None
    buckets: list[int] | None = None
    num_prompts: int | None = None
    samples: int | None = None
    judge_samples: int = 1
    judge: bool = True
    dimensions: bool = False
    pairwise: bool = False
    memorisation: int = 0  # training stories to attack
    attack: Attack = field(default_factory=Attack)
    dry_run: bool = False
    overrides: dict[str, str] = field(default_factory=dict)


def parse_options(arguments: Sequence[str]) -> Options:
    """Options of a command line; exits on --help and on an argument without its value.

    Raises:
        UserError: a number out of range, or options that exclude each other.
    """
    known, rest = _parser().parse_known_args(arguments)
    overrides = parse_overrides(rest)
    if known.engine is not None:
        overrides["rollout.engine"] = known.engine
    for option in ("judge_samples", "prefix_words", "verbatim"):
        value = getattr(known, option)
        if value < 1:
            raise UserError(f"--{option.replace('_', '-')}: must be at least 1, got {value}")
    if known.memorisation < 0:
        raise UserError(f"--memorisation: must not be below 0, got {known.memorisation}")
    if known.no_judge and (known.dimensions or known.pairwise):
        asked = "--dimensions" if known.dimensions else "--pairwise"
        raise UserError(f"--no-judge: {asked} needs a judge; leave one of the two out")
    models = known.model or latest_run()
    if known.pairwise and len(models) < 2:
        raise UserError("--pairwise: needs two models or more; give --model again")
    return Options(
        models=models,
        data=known.data,
        train_data=known.train_data,
        out=known.out,
        config=known.config,
        words=_numbers("--words", known.words),
        buckets=_numbers("--buckets", known.buckets),
        num_prompts=known.num_prompts,
        samples=known.samples,
        judge_samples=known.judge_samples,
        judge=not known.no_judge,
        dimensions=known.dimensions,
        pairwise=known.pairwise,
        memorisation=known.memorisation,
        attack=Attack(known.prefix_words, known.verbatim),
        dry_run=known.dry_run,
        overrides=overrides,
    )


def latest_run() -> list[str]:
    """The models of the latest run in this folder: its base, if it built one, and its newest.

    Raises:
        UserError: there is no run.
    """
    if not LATEST.is_dir():
        raise UserError(
            f"--model: none is given, and there is no run in {LATEST}; name a model, or train the "
            "embedded one first: polaris train"
        )
    base = LATEST / "base"
    return [str(path) for path in (base, LATEST) if path == LATEST or base.is_dir()]


def _numbers(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(
            f"{option}: must be numbers of words with commas between, such as 1000,4000,8000, "
            f"got {text!r}"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="polaris evaluate",
        description="Write stories with one or several models, judge and measure them, and compare "
        "the models by length. Any configuration key may follow as --key value, for example "
        "--temperature 0.8 --judge.base_url https://host/v1 --judge.model NAME.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", action="append", help="folder, run folder or hub id; may be given again, the first is what others are compared with; without it: the latest run and its base")  # fmt: skip # noqa: E501
    add("--data", help="prompts, as for training; without it: the run's held-out ones")
    add("--train-data", help="training stories, for overlap and --memorisation; without it: the run's own")  # fmt: skip # noqa: E501
    add("--out", default=DEFAULT_OUT, help=f"folder of everything written ({DEFAULT_OUT}); the same one again goes on")  # fmt: skip # noqa: E501
    add("--config", help="YAML file or shipped name; without it: that of the run a model lies in")
    add("--words", help="lengths to ask of every prompt, such as 1000,4000,12000; without it: the data's")  # fmt: skip # noqa: E501
    add("--buckets", help="edges of the length buckets in words; without it: 1000,4000,8000,12000, or thirds of short targets")  # fmt: skip # noqa: E501
    add("--num-prompts", type=int, help="prompts to take; without it: all")
    add("--samples", type=int, help="stories for each prompt and length (num_eval_generations)")
    add("--engine", choices=("hf", "vllm"), help="what writes (rollout.engine)")
    add("--judge-samples", type=int, default=1, help="judgements a story, averaged")
    add("--no-judge", action="store_true", help="measure the texts alone")
    add("--dimensions", action="store_true", help="LongBench-Write's S_Q: one more judge call a story")  # fmt: skip # noqa: E501
    add("--pairwise", action="store_true", help="compare the models' stories pair by pair, in both orders")  # fmt: skip # noqa: E501
    add("--memorisation", nargs="?", type=int, const=DEFAULT_ATTACKED, default=0, metavar="N", help=f"let each model go on in N training stories ({DEFAULT_ATTACKED})")  # fmt: skip # noqa: E501
    add("--prefix-words", type=int, default=50, help="words of a training story that are given")
    add("--verbatim", type=int, default=50, help="tokens in a row that count as memorised")
    add("--dry-run", action="store_true", help="print what would be written and asked, and stop")
    return parser
