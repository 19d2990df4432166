"""The `polaris` command: prepare, sft, train, generate, evaluate, plan, judge, report.

Imports stay inside the commands, so that `--help` and a mistyped key answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .types import UserError

if TYPE_CHECKING:
    from .config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status (2 for a mistake in the input)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["judge"]:
        from .judge.__main__ import main as judge_main

        return judge_main(arguments[1:])
    if arguments[:1] == ["report"]:
        from .report.__main__ import main as report_main

        return report_main(arguments[1:])
    if arguments[:1] == ["prepare"]:
        from .prepare.__main__ import main as prepare_main

        return prepare_main(arguments[1:])
    if arguments[:1] == ["plan"]:
        from .plan.__main__ import main as plan_main

        return plan_main(arguments[1:])
    if arguments[:1] == ["evaluate"]:
        from .evaluate.command import main as evaluate_main

        return evaluate_main(arguments[1:])
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    try:
        if known.command == "train":
            return _train(known, parse_overrides(rest))
        if known.command == "sft":
            return _sft(known, parse_overrides(rest))
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return _generate(known)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # all ranks found the same mistake
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before anything was begun", file=sys.stderr)
        return 130


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`--a.b value`, `--a.b=value` or a bare `--flag` (true) -> dotted key to text.

    Raises:
        UserError: an argument without a key.
    """
    overrides: dict[str, str] = {}
    index = 0
    while index < len(arguments):
        word = arguments[index]
        index += 1
        if not word.startswith("--") or len(word) == 2:
            raise UserError(f"unexpected argument {word!r}; settings are given as --key value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            follows = index < len(arguments) and not arguments[index].startswith("--")
            value = arguments[index] if follows else "true"
            index += follows
        overrides[key.replace("-", "_")] = value
    return overrides


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="polaris", description="Fast GRPO training of long-form writers."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        help="train a model; without arguments a tiny one on sample stories, without a GPU",
        description="Train with GRPO and human references. Any configuration key may follow as "
        "--key value, for example --learning_rate 1e-5 --data.path stories/ --max_steps 100.",
        allow_abbrev=False,
    )
    _add_configuration(
        train, "print the resolved configuration, the memory and the money it needs, and stop"
    )
    sft = commands.add_parser(
        "sft",
        help="train on the human stories alone, as a warm start for train",
        description="Supervised training on the data's stories. Takes the configurations of train; "
        "its own keys are sft.num_epochs, sft.rows_per_step and sft.learning_rate.",
        allow_abbrev=False,
    )
    _add_configuration(sft, "print the resolved configuration and stop")
    generate = commands.add_parser("generate", help="write a story with a trained model")
    generate.add_argument("--model", required=True, help="checkpoint, run folder or hub id")
    generate.add_argument("--prompt", required=True, help="what the story is about")
    generate.add_argument("--words", type=int, default=None, help="length to ask for")
    generate.add_argument("--num", type=int, default=1, help="stories to write")
    generate.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    generate.add_argument("--temperature", type=float, default=None)
    generate.add_argument("--max-tokens", type=int, default=None)
    commands.add_parser("prepare", help="make training data from books (polaris prepare --help)")
    commands.add_parser("plan", help="predict memory, time and cost of a run (polaris plan --help)")
    commands.add_parser("evaluate", help="compare models by length (polaris evaluate --help)")
    commands.add_parser("judge", help="serve or use a judge (polaris judge --help)")
    commands.add_parser("report", help="write a run's HTML report (polaris report --help)")
    return parser


def _add_configuration(command: argparse.ArgumentParser, dry_run: str) -> None:
    command.add_argument(
        "--config",
        help="YAML file or the name of a shipped configuration; without it the embedded model has "
        "default_cpu, and a model of your own (--model_name_or_path) the paper's settings",
    )
    command.add_argument("--dry-run", action="store_true", help=dry_run)


def _train(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from .config_file import dump_config

    config = _load_config(known, overrides)
    if known.dry_run:
        _check_local_records(config)
        print(dump_config(config), end="")
        print(_plan_comment(config), end="")
        return 0
    # Tokenizers warn about forks and transformers about the hub on every start otherwise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from .trainer import run_training

    return run_training(config)


def _sft(known: argparse.Namespace, overrides: dict[str, str]) -> int:
    from .config_file import dump_config
    from .sft import run_sft
    from .sft.settings import supervised

    config = _load_config(known, overrides)
    if known.dry_run:
        _check_local_records(supervised(config))
        print(dump_config(supervised(config)), end="")
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return run_sft(config)


def _load_config(known: argparse.Namespace, overrides: dict[str, str]) -> Config:
    from .config_file import load_config, names_model

    if "LOCAL_RANK" in os.environ:
        overrides.pop("local_rank", None)  # deepspeed's launcher appends what it sets as well
    path = known.config or _config_of_resumed(overrides)
    config = load_config(path, overrides)
    is_first = os.environ.get("RANK", "0") == "0"
    if path is None and names_model(overrides) and is_first and not known.dry_run:
        print("settings    the paper's, for no --config was given (polaris train --help)")
    return config


def _check_local_records(config: Config) -> None:
    """What can be said of the data without its tokenizer."""
    from .data import with_thinking
    from .plan.records import local_records
    from .prompts import has_human_row

    records = local_records(config).training
    config = config.model_copy(update={"data": with_thinking(config.data, records)})
    for record in records:
        has_human_row(record, config)


def _plan_comment(config: Config) -> str:
    """Memory and cost on this machine as YAML comments, so that the output stays a configuration.

    A model whose config is not here leaves a line that says so: the configuration itself is good.
    """
    from .model.load import quiet_transformers
    from .plan.assumptions import Assumptions
    from .plan.build import reckon
    from .plan.estimate import estimate_summary
    from .plan.hardware import this_cpu, this_machine
    from .plan.records import local_records, settled
    from .plan.table import memory_summary

    quiet_transformers()
    machine = this_cpu() if config.device == "cpu" else this_machine()
    name = f"{machine.count} x {machine.name}"
    try:
        local = local_records(config)
        config, notes = settled(config, local, Assumptions())
        found = reckon(config, machine, local.training, local.held_out, Assumptions())
        text = "".join(f"{note}\n" for note in notes)
        text += memory_summary(found.memory, name)
        text += estimate_summary(found.memory, found.cost, machine)
        text += "\nMore, and other machines: polaris plan --help\n"
    except UserError as error:
        text = f"no plan: {error}\n"
    return "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines())


def _config_of_resumed(overrides: dict[str, str]) -> str | None:
    """A resumed run goes on under its own configuration unless another is named."""
    resumed = overrides.get("resume_from_checkpoint")
    if resumed is None:
        return None
    for folder in (Path(resumed), Path(resumed).parent):
        if (folder / "config.yaml").is_file():
            return str(folder / "config.yaml")
    if Path(resumed).is_dir():
        # the defaults are another run's settings: they would train on other data, unnoticed
        raise UserError(
            f"resume_from_checkpoint: {resumed} has no config.yaml in it or beside it; give the "
            "run's own by --config"
        )
    return None


def _generate(known: argparse.Namespace) -> int:
    from .config_file import load_config
    from .generate import generate_stories
    from .run_folder import newest_model

    model = newest_model(known.model)
    run_config = Path(model).resolve().parent / "config.yaml"
    stories = generate_stories(
        model,
        known.prompt,
        words=known.words,
        num=known.num,
        seed=known.seed,
        temperature=known.temperature,
        max_tokens=known.max_tokens,
        config=load_config(run_config) if run_config.is_file() else None,
    )
    for story in stories:
        print(story, end="\n\n" if known.num > 1 else "\n")
    return 0
