"""DATA_CARD.md: what the data set holds, what was left out and why, and how it was made."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .settings import Settings
from .summary import Summary, counted

MAX_ROWS = 200  # of a list; the rest is counted
LIBRARIES = ("polaris-fast", "lxml", "markdown-it-py", "ftfy", "datasketch", "pyarrow")


def write_card(path: Path, settings: Settings, summary: Summary) -> None:
    """Write the card; every figure comes from the summary."""
    parts = [
        *_head(settings, summary),
        *_lengths(summary),
        *_left_out(summary),
        *_prompts(settings, summary),
        *_split(settings, summary),
        *_sources(summary),
        *_made(settings, summary),
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8", errors="replace")


def _head(settings: Settings, summary: Summary) -> Iterable[str]:
    words = sum(line.words for line in summary.lines)
    authors = {line.author for line in summary.lines if line.author}
    yield "# Data card"
    yield ""
    yield (
        f"{len(summary.lines):,} stories, {words:,} words, {len(authors):,} named authors, from "
        f"{counted(summary.num_files, 'file')}: `train.{settings.format}` holds "
        f"{len(summary.lines) - summary.num_test:,}"
        + (f", `test.{settings.format}` {summary.num_test:,}." if summary.num_test else ".")
    )
    yield ""
    yield (
        "**Licences.** The stories keep the rights they had in their sources; nothing here grants "
        "any. Make sure that you may use each source for training before you train, and do not "
        "pass this folder on where you may not pass the books on."
    )
    yield ""
    yield (
        "Fields: `uid` (hash of the text), `prompt`, `target_word_count` (the story's own words, "
        "by whitespace), `story`, `reasoning` (where there is one), `source`, `title`, `author`, "
        "`length_bin`, `prompt_from`."
    )
    yield ""


def _lengths(summary: Summary) -> Iterable[str]:
    yield "## Lengths"
    yield ""
    rows = [(name, f"{a:,}", f"{b:,}") for name, (a, b) in summary.bins().items()]
    yield from _table(("words", "train", "test"), rows)


def _left_out(summary: Summary) -> Iterable[str]:
    yield "## Left out"
    yield ""
    counts = summary.drop_counts()
    if not counts:
        yield "Nothing."
        yield ""
        return
    yield from _table(("reason", "texts"), [(kind, f"{n:,}") for kind, n in counts.items()])
    rows = [
        (drop.kind, drop.title or "-", f"{drop.words:,}", drop.where, drop.detail)
        for drop in summary.drops
    ]
    yield from _table(("kind", "title", "words", "where", "why"), rows)
    if summary.duplicates:
        yield "Near-duplicates, by word 5-grams; the longer text stays:"
        yield ""
        doubles = [
            (d.dropped, d.kept, f"{d.twin.jaccard:.2f}", f"{d.twin.containment:.2f}")
            for d in summary.duplicates
        ]
        yield from _table(("left out", "kept", "Jaccard", "contained"), doubles)


def _prompts(settings: Settings, summary: Summary) -> Iterable[str]:
    yield "## Prompts"
    yield ""
    names = {
        "source": "given by the source",
        "extractive": "extracted from title and first scene, without a language model",
        "endpoint": "written by the endpoint",
    }
    for kind, n in summary.prompts_from.most_common():
        yield f"- {n:,} {names[kind]}"
    if summary.leaking_prompts:
        yield f"- {summary.leaking_prompts:,} given prompts leaked their story and were replaced"
    if summary.sized_prompts:
        yield (
            f"- {summary.sized_prompts:,} given prompts named a length, which `target_word_count` "
            "does: it was cut, or the prompt replaced where it said nothing else"
        )
    if summary.written is not None:
        for kind, n in sorted(summary.written.prompts.items()):
            yield f"- endpoint, {kind}: {n:,}"
        for kind, n in sorted(summary.written.plans.items()):
            yield f"- gold reasoning, {kind}: {n:,}"
    if summary.num_reasoned:
        yield f"- {summary.num_reasoned:,} of {len(summary.lines):,} stories have reasoning"
    yield ""
    yield (
        "No prompt holds a word 8-gram, a whole sentence of five words or more, or a quoted phrase "
        "of its story (compared without case and punctuation)."
    )
    yield ""
    if summary.spent is not None and settings.endpoint is not None:
        spent, endpoint = summary.spent, settings.endpoint
        cost = f"{spent.cost_usd:.4f} USD" if spent.price_known else "at an unknown price"
        yield (
            f"Endpoint {endpoint.base_url}, model `{endpoint.model}`: "
            f"{spent.num_calls:,} calls in this run, {spent.from_journal:,} answers from the "
            f"journal, {spent.prompt_tokens:,} tokens in, {spent.completion_tokens:,} out, {cost}."
        )
        yield ""


def _split(settings: Settings, summary: Summary) -> Iterable[str]:
    split = summary.split
    assert split is not None
    yield "## Split"
    yield ""
    ties = " and ".join(settings.split_by) or "nothing but texts in common"
    yield (
        f"By {ties}: {counted(split.num_components, 'component')}, the largest with "
        f"{split.largest:,} stories; each is whole on one side, chosen by hash. Stories that share "
        "a tenth of the shorter one's word 5-grams are tied, too: of pairs with 1,000 words or "
        "more in the shorter, fewer than one in a thousand is missed, but for a tenth that is "
        "pieced together from phrases of more than eight stories."
    )
    if settings.split_by:
        yield ""
        yield (
            "An author is any of those named for a story or its book. Files that name no book "
            "belong to the folder they lie in; right in a given folder each stands alone. Stories "
            f"with neither author nor book: {summary.num_nameless:,}."
        )
    if split.problem:
        yield ""
        yield f"**Note**: {split.problem}."
    yield ""


def _sources(summary: Summary) -> Iterable[str]:
    yield "## Sources"
    yield ""
    stories = Counter(line.source for line in summary.lines)
    rights = {line.source: line.rights for line in summary.lines if line.rights}
    rows = [(s or "-", f"{n:,}", rights.get(s, "not stated")) for s, n in stories.most_common()]
    yield from _table(("source", "stories", "rights as stated"), rows)


def _made(settings: Settings, summary: Summary) -> Iterable[str]:
    yield "## How it was made"
    yield ""
    yield (
        f"`python -m polaris_fast.prepare` in {summary.seconds:.1f} s: words from "
        f"{settings.min_words:,} to {settings.max_words:,}, near-duplicates from Jaccard "
        f"{settings.duplicate_similarity:g}, test share "
        + (
            f"{settings.quota.share:g}"
            if settings.quota.counts is None
            else f"counts {', '.join(map(str, settings.quota.counts))}"
        )
        + (", one story per file" if settings.one_story_per_file else "")
        + (f"; files of other kinds ignored: {kinds}" if (kinds := summary.other_kinds()) else "")
        + "."
    )
    yield ""
    known = [f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            known.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    yield f"Versions: {', '.join(known)}."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows[:MAX_ROWS]:
        yield f"| {' | '.join(_cell(text) for text in row)} |"
    yield ""
    if len(rows) > MAX_ROWS:
        yield f"... and {len(rows) - MAX_ROWS:,} more."
        yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:160]
