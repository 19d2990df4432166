"""What the command line asks for, checked before anything is read."""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..types import UserError
from .bins import BINS, EDGES
from .split import TIES, Quota

_LIBRARIES = {"lxml": "lxml", "markdown_it": "markdown-it-py", "ftfy": "ftfy",
              "datasketch": "datasketch"}  # fmt: skip


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux; macOS and Windows do not tell
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where prompts are written, and what they may cost."""

    base_url: str
    model: str
    api_key_env: str | None = None  # None: the provider's usual variable
    concurrency: int = 16
    price_input: float | None = None  # USD per million tokens
    price_output: float | None = None
    max_cost_usd: float | None = None
    temperature: float | None = 0.7


@dataclass(frozen=True, slots=True)
class Settings:
    """One data set to be made; paths are as the user gave them."""

    sources: tuple[Path, ...]
    out: Path
    format: Literal["jsonl", "parquet"] = "jsonl"
    min_words: int = EDGES[0]
    max_words: int = EDGES[-1]
    one_story_per_file: bool = False
    duplicate_similarity: float = 0.5  # Jaccard of word 5-grams
    split_by: tuple[str, ...] = TIES
    quota: Quota = field(default_factory=Quota)
    quota_given: bool = False  # the user asked for a test split: not having one is an error
    endpoint: EndpointSettings | None = None
    reasoning: bool = False
    estimate_only: bool = False
    journal: Path | None = None  # None: beside `out`
    report: bool = False
    overwrite: bool = False
    workers: int = field(default_factory=_usable_cores)

    @property
    def journal_path(self) -> Path:
        """Where answers of the endpoint are kept: they outlive a data set that is made again."""
        return self.journal or self.out.with_name(f"{self.out.name}.prompts.sqlite")


def check_settings(settings: Settings) -> None:
    """Find every mistake that can be found without reading a story.

    Raises:
        UserError: names the option, its value and the remedy.
    """
    _check_libraries()
    for source in settings.sources:
        if not source.exists():
            raise UserError(f"SOURCE: {source} does not exist; give a file or a folder of stories")
    if settings.out.exists() and not settings.out.is_dir():
        raise UserError(f"--out: {settings.out} is a file; give a folder to be made")
    if settings.out.is_dir() and any(settings.out.iterdir()):
        _check_replaceable(settings)
    _check_writable(settings.out)
    _check_journal(settings)
    if not 1 <= settings.min_words <= settings.max_words:
        raise UserError(
            f"--min-words: must be from 1 to --max-words ({settings.max_words}), got "
            f"{settings.min_words}"
        )
    if not 0 < settings.duplicate_similarity <= 1:
        raise UserError(
            f"--duplicate-similarity: must be above 0 and at most 1, got "
            f"{settings.duplicate_similarity}"
        )
    if settings.workers < 1:
        raise UserError(f"--workers: must be at least 1, got {settings.workers}")
    _check_endpoint(settings)


def parse_split_by(text: str) -> tuple[str, ...]:
    """ "author,source" -> ("author", "source"); "story" -> ()."""
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if words == ("story",):
        return ()
    if not words or not set(words) <= set(TIES):
        raise UserError(
            f"--split-by: {text!r} is none of author, source, author,source and story; story ties "
            "nothing but texts in common"
        )
    return words


def parse_counts(text: str) -> tuple[int, ...]:
    """ "90,60,30" -> test stories in each bin of the recipe."""
    try:
        counts = tuple(int(word) for word in text.split(","))
    except ValueError:
        counts = ()
    if len(counts) != len(BINS) or min(counts) < 0:
        raise UserError(
            f"--test-counts: {text!r} must be {len(BINS)} numbers, one for each of "
            f"{', '.join(BINS)} words; for example 90,60,30"
        )
    return counts


def check_share(share: float) -> float:
    """`share` itself when it is one."""
    if not (math.isfinite(share) and 0 <= share < 1):
        raise UserError(f"--test-share: must be at least 0 and below 1, got {share}")
    return share


def _check_libraries() -> None:
    missing = [name for module, name in _LIBRARIES.items()
               if importlib.util.find_spec(module) is None]  # fmt: skip
    if missing:
        raise UserError(
            f"{', '.join(missing)} not installed; preparing data needs them: "
            "pip install 'polaris-fast[train,prepare]'"
        )


def _check_replaceable(settings: Settings) -> None:
    if not settings.overwrite:
        raise UserError(
            f"--out: {settings.out} is not empty; give another folder, or --overwrite to replace it"
        )
    if not (settings.out / "DATA_CARD.md").is_file():
        raise UserError(
            f"--overwrite: {settings.out} holds no DATA_CARD.md, so it is no data set of this "
            "command, and is left alone; give another --out"
        )
    out = settings.out.resolve()
    for source in settings.sources:
        if out == source.resolve() or out in source.resolve().parents:
            raise UserError(f"--out: {settings.out} holds SOURCE {source}; give another folder")


def _check_writable(out: Path) -> None:
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--out: {parent} cannot be written to; give another folder")


def _check_journal(settings: Settings) -> None:
    out, journal = settings.out.resolve(), settings.journal_path.resolve()
    if journal == out or out in journal.parents:
        raise UserError(
            f"--journal: {settings.journal_path} lies in --out, which is replaced as a whole with "
            "the paid answers in it; give a path outside of it"
        )


def _check_endpoint(settings: Settings) -> None:
    endpoint = settings.endpoint
    if endpoint is None:
        if settings.reasoning:
            raise UserError("--reasoning: plans are written by an endpoint; give --endpoint")
        if settings.estimate_only:
            raise UserError("--estimate: nothing costs anything without an --endpoint; give one")
        return
    if not endpoint.model:
        raise UserError("--model: missing; name the model that --endpoint serves")
    if endpoint.concurrency < 1:
        raise UserError(f"--concurrency: must be at least 1, got {endpoint.concurrency}")
    prices = (endpoint.price_input, endpoint.price_output)
    if (prices[0] is None) != (prices[1] is None):
        raise UserError("--price-input and --price-output go together, in USD per million tokens")
    for name, value in (("--price-input", prices[0]), ("--price-output", prices[1])):
        if value is not None and value < 0:
            raise UserError(f"{name}: must not be negative, got {value}")
    if endpoint.max_cost_usd is not None:
        if prices[0] is None:
            raise UserError(
                f"--max-cost: {endpoint.max_cost_usd} USD cannot be kept without prices; give "
                "--price-input and --price-output, in USD per million tokens"
            )
        if endpoint.max_cost_usd <= 0:
            raise UserError(f"--max-cost: must be above 0, got {endpoint.max_cost_usd}")
