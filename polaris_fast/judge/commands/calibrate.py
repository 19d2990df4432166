"""`calibrate`: judge some stories several times, and say how far a score can be trusted."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from rich.table import Table

from ...config import FallbackConfig, JudgeConfig
from ...config_file import load_config, shipped_configs
from ...report.folder import read_run
from ...types import Scored, UserError
from .. import rubric
from ..agreement import Agreement
from ..calibrate import JudgeNoise, agreement_of, measure
from ..client import display_url
from ..heuristic import DISCLAIMER, MODEL_NAME
from ..jobs import JudgeJob
from ..pricing import cost_usd, prices_of
from ..request import build_messages
from ..variance import Components, Estimate
from .console import make_console
from .judging import judge_all
from .noise_floor import write_noise_floor
from .settings import add_config_option, load_settings
from .texts import Text, read_texts

BYTES_PER_TOKEN = 4  # of English, for the estimate of the cost
ANSWER_TOKENS = 1500  # of one judgement, for the same


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "calibrate",
        help="measure a judge's noise and reliability",
        description="Judge stories several times each and split the variance of the scores into "
        "the stories' and the judge's own. FILE is as for `score`, or the folder of a run, whose "
        "last stories are taken and, without --config, whose judge is measured; without any, the "
        "bundled sample stories.",
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="files, folders, runs or -")
    parser.add_argument("--prompt", default="", help="prompt of the stories that bring none")
    parser.add_argument("--stories", type=int, default=24, help="stories at most; default 24")
    parser.add_argument("--samples", type=int, default=4, help="judgements a story; default 4")
    parser.add_argument("--reliability", type=float, default=0.8, help="to advise samples for")
    parser.add_argument(
        "--against", action="append", default=[], metavar="CONFIG",
        help="another configuration, whose judge is measured too; may be repeated",
    )  # fmt: skip
    parser.add_argument("--write", metavar="CONFIG", help="YAML file to put judge.noise_std into")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of the tables")
    parser.add_argument("--yes", action="store_true", help="do not ask before paid calls")
    add_config_option(parser)
    parser.set_defaults(run=run, takes_settings=True)


def run(options: argparse.Namespace) -> int:
    """Judge, estimate, print, write. 0: every judgement arrived; 1: some did not.

    Raises:
        UserError: a file or a setting is wrong, the judge fails, or nobody agreed to the cost.
    """
    _check(options)
    judges = [_first_judge(options), *(load_config(c).judge for c in options.against)]
    texts = _texts(options)
    print(f"{len(texts)} stories, {options.samples} judgements each", file=sys.stderr)
    for judge in judges:
        _agree(judge, texts, options.samples, yes=options.yes)
    scores = [_judgements(judge, texts, options.samples) for judge in judges]
    groups = [text.prompt for text in texts]
    found = [measure(_name(j), s, groups) for j, s in zip(judges, scores, strict=True)]
    agreements = [agreement_of(scores[0], other, groups) for other in scores[1:]]
    if options.json:
        print(json.dumps(_as_dict(found, agreements, options.reliability), indent=1))
    else:
        _print(found, agreements, options.reliability)
    if options.write:
        floor = found[0].quality.sigma_judge.value
        print(write_noise_floor(Path(options.write), floor), file=sys.stderr)
    arrived = sum(len(samples) for story in scores for samples in story)
    return 0 if arrived == len(judges) * len(texts) * options.samples else 1


def _check(options: argparse.Namespace) -> None:
    for name, least in (("stories", 2), ("samples", 2)):
        if getattr(options, name) < least:
            raise UserError(f"--{name}: must be at least {least}, got {getattr(options, name)}")
    if not 0 < options.reliability < 1:
        raise UserError(f"--reliability: must be between 0 and 1, got {options.reliability}")
    if options.write in shipped_configs():
        raise UserError(
            f"--write {options.write}: the name of a configuration that comes with the package; "
            "give a YAML file of your own"
        )


def _first_judge(options: argparse.Namespace) -> JudgeConfig:
    """The one that is asked for; of a run without `--config` the run's own.

    Raises:
        UserError: a wrong setting, runs whose judges may differ, or a noise to be written that is
            the local judge's.
    """
    runs = sorted({str(Path(path).resolve()) for path in options.files if _is_run(path)})
    if options.config is None and len(runs) > 1:
        raise UserError(f"--config: {', '.join(runs)} are several runs; say whose judge is meant")
    if options.config is None and runs:
        judge = load_config(Path(runs[0]) / "config.yaml", options.settings).judge
    else:
        judge = load_settings(options).judge
    if options.write and judge.base_url is None:
        raise UserError(
            f"--write {options.write}: the local judge is deterministic, its noise is 0; name "
            "the judge that training will use with --config or --judge.base_url"
        )
    return judge


def _is_run(path: str) -> bool:
    return (Path(path) / "stories").is_dir()


def _texts(options: argparse.Namespace) -> list[Text]:
    """The stories, at most `--stories`; of a run the last ones."""
    paths = options.files or [str(resources.files("polaris_fast") / "samples" / "stories.jsonl")]
    texts: list[Text] = []
    for path in paths:
        if _is_run(path):
            texts += _last_stories(path, options.stories)
        else:
            texts += read_texts([path], options.prompt)
    distinct = list({(text.prompt, text.story): text for text in texts}.values())
    return distinct[: options.stories]


def _last_stories(path: str, num: int) -> list[Text]:
    folder = read_run(path)
    texts: list[Text] = []
    for step in reversed(folder.story_files):
        for row in folder.stories(step):
            if row.get("kind") == "policy" and str(row.get("story") or "").strip():
                texts.append(Text(str(row["row_id"]), str(row["prompt"]), str(row["story"])))
        if len(texts) >= num:
            break
    return texts


def _agree(judge: JudgeConfig, texts: Sequence[Text], samples: int, *, yes: bool) -> None:
    """Say what it takes and ask; the local judge is free."""
    if judge.base_url is None:
        print(DISCLAIMER, file=sys.stderr)
        return
    sizes = [sum(len(m["content"]) for m in build_messages(t.prompt, t.story)) for t in texts]
    calls = samples * len(texts)
    tokens_in, tokens_out = samples * sum(sizes) // BYTES_PER_TOKEN, calls * ANSWER_TOKENS
    usd = cost_usd(
        prices_of(judge),
        prompt_tokens=tokens_in,
        cached_tokens=0,
        completion_tokens=tokens_out,
    )
    price = "price unknown: judge.price_input is not set" if usd is None else f"about ${usd:.2f}"
    print(
        f"{_name(judge)} at {display_url(judge.base_url)}: up to {calls} calls, about "
        f"{tokens_in / 1e6:.2f} M tokens in and {tokens_out / 1e6:.2f} M out, {price}; what the "
        "journal holds is not paid again",
        file=sys.stderr,
    )
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError("--yes: give it to go on without a terminal to ask at")
    print("Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("calibrate: not confirmed, nothing was sent")


def _judgements(judge: JudgeConfig, texts: Sequence[Text], samples: int) -> list[list[Scored]]:
    """For each story the judgements that arrived; each was asked for on its own."""
    alone = judge.model_copy(update={"fallback": FallbackConfig()})
    jobs = [
        JudgeJob(f"calibrate/{i}/{k}", text.prompt, text.story, first_sample=k)
        for i, text in enumerate(texts)
        for k in range(samples)
    ]
    outcomes = judge_all(alone, jobs)
    rows = (outcomes[i * samples : (i + 1) * samples] for i in range(len(texts)))
    return [[outcome for outcome in row if isinstance(outcome, Scored)] for row in rows]


def _name(judge: JudgeConfig) -> str:
    return MODEL_NAME if judge.base_url is None else judge.model


def _print(
    found: Sequence[JudgeNoise], agreements: Sequence[Agreement | None], reliability: float
) -> None:
    console = make_console()
    for noise in found:
        console.print(table_of(noise, reliability))
        console.print()
    for noise, agreement in zip(found[1:], agreements, strict=True):
        if agreement is None or agreement.spearman is None:
            console.print(f"{found[0].judge} and {noise.judge}: no two stories scored differently")
            continue
        ends = ""
        if agreement.spearman_low is not None:
            ends = f" ({agreement.spearman_low:.2f} to {agreement.spearman_high:.2f})"
        console.print(
            f"{found[0].judge} and {noise.judge}: Spearman's rho {agreement.spearman:.2f}{ends}, "
            f"mean shift {agreement.mean_shift:+.3f}"
        )


def table_of(noise: JudgeNoise, reliability: float) -> Table:
    """The components for people; ranges are 95 % intervals."""
    table = Table(
        box=None,
        header_style="dim",
        title=f"{noise.judge}: mean quality {noise.mean_quality:.3f}",
        caption=f"in points, 100 to a quality of 1; samples: for a reliability of {reliability:g}",
    )
    table.title_justify = table.caption_justify = "left"
    table.add_column("score", no_wrap=True)
    for name in ("stories differ by", "judge differs by", "reliability", "samples"):
        table.add_column(name, justify="right", no_wrap=True)
    parts = {"quality": noise.quality} | noise.dimensions
    for name, part in parts.items():
        scale = rubric.POINTS_PER_QUALITY if name == "quality" else 1
        table.add_row(name, *_cells(part, scale, reliability))
    return table


def _cells(part: Components, scale: int, reliability: float) -> tuple[str, ...]:
    advised = part.samples_for(reliability)
    if part.story_variance <= 0 and part.judge_variance <= 0:
        return ("0", "0", "-", "-")  # the same number for every story
    return (
        _range(part.sigma_story, scale, 1),
        _range(part.sigma_judge, scale, 1),
        _range(part.reliability(), 1, 2),
        "no number" if advised is None else str(advised),
    )


def _range(estimate: Estimate, scale: int, digits: int) -> str:
    value, low, high = (
        f"{scale * number:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low}-{high})"


def _as_dict(
    found: Sequence[JudgeNoise], agreements: Sequence[Agreement | None], reliability: float
) -> dict[str, Any]:
    return {
        "reliability": reliability,
        "judges": [noise.as_dict(reliability) for noise in found],
        "agreement_with_first": [a and asdict(a) for a in agreements],
    }
