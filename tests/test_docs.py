"""The commands that the documentation tells people to run are commands that are accepted."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from polaris_fast.cli import parse_overrides
from polaris_fast.config_file import load_config

ROOT = Path(__file__).resolve().parents[1]
STARTS = ("polaris_fast.train", "polaris train", "polaris_fast.sft", "polaris sft")
LAUNCHERS = {"torchrun", "deepspeed"}


def indented(page: Path) -> list[str]:
    """Its code, a command a line."""
    joined = page.read_text().replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.startswith("    ")]


def training() -> list[tuple[str, str, str]]:
    """(page, what starts it, arguments) of every command that trains."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for line in indented(page):
            for start in STARTS:
                before, is_one, arguments = line.partition(start + " ")
                if is_one:
                    found.append((page.name, before, arguments))
    return found


def written_out(arguments: str) -> list[str]:
    """The words, with a value for `...` after a key; elsewhere it stands for any further ones."""
    words: list[str] = []
    for word in shlex.split(arguments, comments=True):
        if word == "..." and words and words[-1].startswith("--"):
            words.append("given")
        elif word not in ("...", "$RESUME"):
            words.append(word)
    return words


@pytest.mark.parametrize(("page", "before", "arguments"), training())
def test_a_command_that_trains_is_accepted(page: str, before: str, arguments: str) -> None:
    overrides = parse_overrides(written_out(arguments))
    overrides.pop("dry_run", None)
    config = load_config(overrides.pop("config", None), overrides)
    if config.engine.kind == "deepspeed":  # it runs under a launcher alone
        assert LAUNCHERS & set(before.split())


def test_servers_of_a_persons_own_are_started_alike_everywhere() -> None:
    pages = [ROOT / "docs" / name for name in ("vllm.md", "launch.md")]
    serving = [line for page in pages for line in indented(page) if "vllm serve" in line]
    assert len(serving) == len(pages)
    for line in serving:
        flags = {"--skip-tokenizer-init", "--language-model-only", "--enable-scale-out"}
        assert flags <= set(shlex.split(line))
