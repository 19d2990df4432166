"""Source files to a data set: read, leave out doubles, split, write prompts, write files.

Nothing is in `--out` before everything is: the folder is made beside it and renamed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from ..types import UserError
from .card import write_card
from .document import Story
from .duplicates import Candidates, Twin, choose, compare, exact_copies
from .files import find_files, put_in_place, scratch_folder, write_records
from .progress import ProgressView
from .reading import read_all
from .settings import Settings, check_settings
from .shared_text import sharing_pairs
from .split import Item, Quota, split_items
from .stage import Stage
from .summary import SAMPLES, Duplicate, Line, Sample, Summary, counted

CONTAINED = 0.8  # of the shorter story's 5-grams: it is an excerpt
OPENING_CHARS = 420


def prepare(settings: Settings, view: ProgressView) -> Summary | None:
    """Make the data set that the settings describe; None when only the estimate was wanted.

    Raises:
        UserError: a mistake in the settings, nothing to read, no story left, a test split that was
            asked for and cannot be had, or an endpoint that does not answer.
    """
    begin = time.monotonic()
    check_settings(settings)
    files, others = find_files(settings)
    if settings.endpoint is not None:
        from .prompts import run  # the judge's client takes a second to import

        run.check(settings.endpoint)
    summary = Summary(num_files=len(files), other_files=others)
    with scratch_folder(settings.out) as scratch:
        with closing(Stage(scratch / "stage.sqlite")) as stage:
            ties = _read(settings, files, stage, summary, view)
            _split(settings, ties, summary, view)
            if settings.endpoint is not None:
                numbers = [line.number for line in summary.lines]
                run.tell_estimate(settings, settings.endpoint, stage, numbers, view)
                if settings.estimate_only:
                    return None
                summary.written, summary.spent = run.write_prompts(
                    settings, settings.endpoint, stage, numbers, view
                )
            folder = scratch / "data"
            folder.mkdir()
            _write(settings, folder, stage, summary, view)
        summary.seconds = time.monotonic() - begin
        write_card(folder / "DATA_CARD.md", settings, summary)
        if settings.report:
            from .page import write_page  # matplotlib takes half a second to import

            write_page(folder / "report.html", settings, summary)
        put_in_place(folder, settings.out)
    return summary


def _read(
    settings: Settings,
    files: list[tuple[Path, str]],
    stage: Stage,
    summary: Summary,
    view: ProgressView,
) -> list[tuple[int, int]]:
    """Stories into stage and summary, without the doubles; returns pairs with text in common.

    The twin that is kept stands for the one that is not: what ties others may hang on it alone.
    """
    candidates = Candidates()
    read_all(settings, files, stage, candidates, summary, view)
    for drop in (d for d in summary.drops if d.kind == "unreadable"):
        title = f' "{drop.title}"' if drop.title else ""
        view.say(f"left out: {drop.where}{title}: {drop.detail}")
    if not summary.lines:
        raise UserError(_nothing_left(summary))
    lines = summary.lines
    copies = exact_copies([(line.words, line.uid) for line in lines])
    texts = [line.number for line in lines if line.number not in copies]
    sharing = sharing_pairs([lines[n].words for n in texts], lambda i: stage.grams(texts[i]))
    alike = {*candidates.pairs(texts), *((texts[i], texts[j]) for i, j in sharing)}
    pairs = compare(sorted(alike), stage.grams)
    twins = choose(
        pairs,
        lambda number: (lines[number].words, lines[number].uid),
        threshold=settings.duplicate_similarity,
        contained=CONTAINED,
    )
    chosen = {twin.dropped: twin for twin in twins}
    for copy, original in copies.items():  # where the original gives way, so does its copy
        stays = chosen.get(original, Twin(copy, original, 1.0, 1.0))
        twins.append(replace(stays, dropped=copy))
    for twin in sorted(twins, key=lambda twin: twin.dropped):
        dropped, kept = lines[twin.dropped], lines[twin.kept]
        summary.duplicates.append(
            Duplicate(
                dropped=f"{dropped.title or 'untitled'} ({dropped.where})",
                kept=f"{kept.title or 'untitled'} ({kept.where})",
                words=dropped.words,
                twin=twin,
            )
        )
    gone = {twin.dropped: twin.kept for twin in twins}
    summary.lines = [line for line in lines if line.number not in gone]
    return [(gone.get(p.first, p.first), gone.get(p.second, p.second)) for p in pairs]


def _nothing_left(summary: Summary) -> str:
    counts = ", ".join(f"{n} {kind}" for kind, n in summary.drop_counts().items())
    return (
        f"SOURCE: no story is left; files read: {summary.num_files}, left out: "
        f"{counts or 'nothing'}; check --min-words and --max-words, or try --one-story-per-file"
    )


def _split(
    settings: Settings, ties: Iterable[tuple[int, int]], summary: Summary, view: ProgressView
) -> None:
    items = [Item(l.number, l.uid, l.author, l.source, l.bin, l.folder) for l in summary.lines]
    quota = settings.quota
    if len(items) < 2 and not settings.quota_given:
        quota = Quota(0.0)
    split = split_items(items, settings.split_by, ties, quota)
    if split.problem:
        if settings.quota_given and not split.test:
            option = "--test-share" if settings.quota.counts is None else "--test-counts"
            raise UserError(f"{option}: {split.problem}")
        view.say(f"note: {split.problem}")
    if (nameless := summary.num_nameless) and settings.split_by and len(items) > 1:
        view.say(
            f"note: {counted(nameless, 'story', 'stories')} with neither author nor book; only "
            "texts in common tie them to others: put the files of one book into a folder of its own"
        )
    summary.split = split
    summary.lines = [replace(line, is_test=line.number in split.test) for line in summary.lines]


def _write(
    settings: Settings, folder: Path, stage: Stage, summary: Summary, view: ProgressView
) -> None:
    view.stage("writing files", len(summary.lines))
    sampled = {line.number for line in _spread(summary.lines, SAMPLES)}

    def stories(lines: Iterable[Line]) -> Iterator[Story]:
        for line in lines:
            story = stage.story(line.number)
            summary.prompts_from[story.prompt_from] += 1
            summary.num_reasoned += bool(story.reasoning)
            if line.number in sampled:
                summary.samples.append(_sample(story))
            view.advance(1)
            yield story

    for name in ("train", "test"):
        lines = [line for line in summary.lines if line.is_test == (name == "test")]
        if lines:
            write_records(folder / f"{name}.{settings.format}", stories(lines))


def _spread(lines: list[Line], num: int) -> list[Line]:
    """Evenly over the lengths."""
    ordered = sorted(lines, key=lambda line: line.words)
    step = max(1, len(ordered) // num)
    return ordered[step // 2 :: step][:num]


def _sample(story: Story) -> Sample:
    opening = story.text[:OPENING_CHARS]
    if len(story.text) > OPENING_CHARS:
        opening = opening.rpartition(" ")[0] + " ..."
    return Sample(story.title, story.author, story.words, story.prompt, story.prompt_from, opening)
