"""The judge's settings on a command line: the keys and files that `polaris train` reads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ...config import Config
from ...config_file import load_config
from ...types import UserError

PREFIX = "--judge."
HELP = (
    "Any key of the configuration's judge section may follow as --judge.KEY VALUE, for example "
    "--judge.base_url https://host/v1 --judge.model NAME. The key for the endpoint comes from the "
    "environment (OPENAI_API_KEY, or what --judge.api_key_env names)."
)


def split_settings(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line without its `--judge.KEY VALUE` arguments, and these by dotted key.

    A key without a value is true. Raises UserError for `--judge.` without a key.
    """
    rest: list[str] = []
    settings: dict[str, str] = {}
    words = iter(range(len(arguments)))
    for i in words:
        word = arguments[i]
        if not word.startswith(PREFIX):
            rest.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if key == "judge.":
            raise UserError(f"{word}: a key is missing, as in --judge.base_url URL")
        if not equals:
            follows = i + 1 < len(arguments) and not arguments[i + 1].startswith("--")
            value = arguments[next(words)] if follows else "true"
        settings[key.replace("-", "_")] = value
    return rest, settings


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """`--config`, and a word about `--judge.KEY` at the end of the help."""
    parser.add_argument("--config", help="YAML file or the name of a shipped configuration")
    parser.epilog = HELP


def load_settings(options: argparse.Namespace) -> Config:
    """The configuration that `--config` and `--judge.KEY` ask for. Raises UserError."""
    return load_config(options.config, options.settings)
