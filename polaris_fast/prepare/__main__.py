"""`python -m polaris_fast.prepare SOURCE --out data/`: the command line."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..types import UserError

if TYPE_CHECKING:
    from .settings import Settings
    from .summary import Summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a data set; returns the exit status (2: a mistake in the input, 130: Ctrl-C)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; {options.out} is as it was", file=sys.stderr)
        return 130


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _run(options: argparse.Namespace) -> int:
    from .settings import check_settings

    settings = _settings(options)
    check_settings(settings)  # names a missing library before it is imported
    from .pipeline import prepare
    from .progress import ProgressView

    with ProgressView() as view:
        summary = prepare(settings, view)
    if summary is None:  # --estimate has told what it was asked for
        return 0
    for line in _last_lines(settings, summary):
        print(line)
    return 0


def _last_lines(settings: Settings, summary: Summary) -> Sequence[str]:
    from .summary import counted

    train = len(summary.lines) - summary.num_test
    lines = [
        f"{train:,} stories to train on, {summary.num_test:,} to test with, from "
        f"{counted(summary.num_files, 'file')} in {summary.seconds:.1f} s: {settings.out}/"
    ]
    if counts := summary.drop_counts():
        lines.append("left out: " + ", ".join(f"{n:,} {kind}" for kind, n in counts.items()))
    if kinds := summary.other_kinds():
        lines.append(f"not read: {kinds}; convert those that hold stories, to EPUB or TXT, say")
    lines.append("prompts: " + ", ".join(f"{n:,} {k}" for k, n in summary.prompts_from.items()))
    if summary.spent is not None:
        cost = f"{summary.spent.cost_usd:.4f} USD" if summary.spent.price_known else "price unknown"
        lines.append(
            f"endpoint: {summary.spent.num_calls:,} calls, {summary.spent.from_journal:,} answers "
            f"from the journal, {cost}"
        )
    if 0 < summary.num_reasoned < len(summary.lines):
        lines.append(
            f"note: {len(summary.lines) - summary.num_reasoned:,} stories have no reasoning; "
            "training thinks only when all have it, or with hri.missing_reasoning"
        )
    test = f" --data.eval_path {settings.out}/test.{settings.format}" if summary.num_test else ""
    lines.append(
        f"next: python -m polaris_fast.train --data.path {settings.out}/train.{settings.format}"
        f"{test}"
    )
    return lines


def _settings(options: argparse.Namespace) -> Settings:
    from .settings import EndpointSettings, Settings, check_share, parse_counts, parse_split_by
    from .split import Quota

    endpoint = None
    if options.endpoint is not None:
        endpoint = EndpointSettings(
            base_url=options.endpoint,
            model=options.model or "",
            api_key_env=options.api_key_env,
            concurrency=options.concurrency,
            price_input=options.price_input,
            price_output=options.price_output,
            max_cost_usd=options.max_cost,
            temperature=options.temperature,
        )
    elif options.model is not None:
        raise UserError(f"--model: {options.model!r} needs the --endpoint that serves it")
    counts = None if options.test_counts is None else parse_counts(options.test_counts)
    share = 0.1 if options.test_share is None else check_share(options.test_share)
    asked = bool(counts and any(counts)) or bool(options.test_share)
    return Settings(
        sources=tuple(options.source),
        out=options.out,
        format=options.format,
        min_words=options.min_words,
        max_words=options.max_words,
        one_story_per_file=options.one_story_per_file,
        duplicate_similarity=options.duplicate_similarity,
        split_by=parse_split_by(options.split_by),
        quota=Quota(share, counts),
        quota_given=asked,
        endpoint=endpoint,
        reasoning=options.reasoning,
        estimate_only=options.estimate,
        journal=options.journal,
        report=options.report,
        overwrite=options.overwrite,
        **({} if options.workers is None else {"workers": options.workers}),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="polaris prepare",
        description="Make a training data set from books and text files: EPUB, HTML, Markdown, "
        "TXT, JSONL and parquet. Finds the stories, cleans them, leaves out near-duplicates and "
        "front and back matter, splits, and gives each story a prompt.",
        allow_abbrev=False,
    )
    parser.add_argument("source", nargs="+", type=Path, metavar="SOURCE", help="file or folder")
    parser.add_argument("--out", required=True, type=Path, help="folder to be made")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier data set")
    parser.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl")
    parser.add_argument("--report", action="store_true", help="write report.html, too")
    parser.add_argument("--workers", type=int, help="processes; all cores if left out")
    stories = parser.add_argument_group("stories")
    stories.add_argument("--min-words", type=int, default=1000, metavar="N")
    stories.add_argument("--max-words", type=int, default=12000, metavar="N")
    stories.add_argument(
        "--one-story-per-file", action="store_true", help="do not look for stories inside a file"
    )
    stories.add_argument(
        "--duplicate-similarity", type=float, default=0.5, metavar="S",
        help="Jaccard similarity of word 5-grams from which two stories are one (0.5)",
    )  # fmt: skip
    split = parser.add_argument_group("split")
    split.add_argument(
        "--split-by", default="author,source", metavar="TIES",
        help="what keeps stories on one side: author,source (default), author, source or story",
    )  # fmt: skip
    sizes = split.add_mutually_exclusive_group()
    sizes.add_argument("--test-share", type=float, metavar="S", help="of each length bin (0.1)")
    sizes.add_argument(
        "--test-counts", metavar="A,B,C", help="test stories of 1-4K, 4-8K and 8-12K words"
    )
    prompts = parser.add_argument_group(
        "prompts", "Without an endpoint prompts are extracted from title and first scene."
    )
    prompts.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible, up to /v1")
    prompts.add_argument("--model", help="model that writes the prompts")
    prompts.add_argument("--api-key-env", metavar="NAME", help="environment variable of the key")
    prompts.add_argument("--reasoning", action="store_true", help="have plans written, too")
    prompts.add_argument("--estimate", action="store_true", help="tell the cost, and stop")
    prompts.add_argument("--concurrency", type=int, default=16, metavar="N")
    prompts.add_argument("--temperature", type=float, default=0.7, metavar="T")
    prompts.add_argument("--price-input", type=float, metavar="USD", help="per million tokens")
    prompts.add_argument("--price-output", type=float, metavar="USD", help="per million tokens")
    prompts.add_argument("--max-cost", type=float, metavar="USD", help="stop before passing this")
    prompts.add_argument(
        "--journal", type=Path, help="SQLite file of paid answers; OUT.prompts.sqlite"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
