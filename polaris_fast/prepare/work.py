"""The part of the work that several processes share: a portion of a source to finished stories."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..text_stats import count_words
from .clean import clean_blocks, clean_text
from .document import Document, Draft, Drop, SourceError, Story
from .fingerprints import grams_of, normal_words, signature
from .headings import tidy_title
from .prompts.extractive import safe_extract
from .prompts.leak import find_leak
from .prompts.lengths import without_length
from .sources import rows
from .sources.epub import read_epub
from .sources.html import read_html
from .sources.markdown import read_markdown
from .sources.text import read_text
from .stories import find_stories

DOCUMENTS: dict[str, Callable[[Path, str], Document]] = {
    ".epub": read_epub,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".txt": read_text,
}
ROWS = {".jsonl": rows.portions_of_jsonl, ".parquet": rows.portions_of_parquet}
SUFFIXES = (*DOCUMENTS, *ROWS)


@dataclass(frozen=True, slots=True)
class Portion:
    """One unit of work: a file, or some rows of one."""

    path: Path
    name: str
    first_row: int = 0  # of `rows`; 0: the whole file
    rows: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """What the workers need of the settings."""

    min_words: int
    max_words: int
    one_story_per_file: bool


@dataclass(slots=True)
class Finished:
    """A story with what it is compared by."""

    story: Story
    grams: bytes  # (G,) uint32
    signature: np.ndarray  # (128,) uint32


@dataclass(slots=True)
class Outcome:
    """What became of a portion: every text in it is a story or a drop."""

    stories: list[Finished] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    leaking_prompts: int = 0  # given by the source and replaced
    sized_prompts: int = 0  # given by the source with a length of their own, which is cut


def portions(files: Sequence[tuple[Path, str]]) -> Iterator[Portion | Drop]:
    """The work in all files, in order; a file of rows that breaks off gives a `Drop`."""
    for path, name in files:
        suffix = path.suffix.lower()
        if suffix in DOCUMENTS:
            yield Portion(path, name)
            continue
        try:
            for first, some in ROWS[suffix](path):
                yield Portion(path, name, first, some)
        except Exception as error:
            yield Drop("unreadable", _reason(error), name)


def work(portion: Portion, rules: Rules) -> Outcome:
    """Read, divide, clean, count and fingerprint. Raises nothing that a file can cause."""
    outcome = Outcome()
    for draft in _drafts(portion, rules, outcome):
        try:
            _finish(draft, rules, outcome)
        except Exception as error:  # one text that no step foresaw must not end the run
            title = " ".join(draft.title.split())
            outcome.drops.append(Drop("unreadable", _reason(error), draft.where, title))
    return outcome


def _drafts(portion: Portion, rules: Rules, outcome: Outcome) -> Iterator[Draft]:
    if portion.first_row:
        for number, row in enumerate(portion.rows, start=portion.first_row):
            try:
                draft = rows.draft_of_row(row, portion.name, number)
            except Exception as error:
                outcome.drops.append(Drop("unreadable", _reason(error), f"{portion.name}:{number}"))
                continue
            if draft is not None:
                yield draft
        return
    try:
        document = DOCUMENTS[portion.path.suffix.lower()](portion.path, portion.name)
        found = find_stories(document, max_words=rules.max_words, whole=rules.one_story_per_file)
    except Exception as error:  # parsers raise many kinds; one bad file must not end the run
        outcome.drops.append(Drop("unreadable", _reason(error), portion.name))
        return
    outcome.drops += found.drops
    yield from found.drafts


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, SourceError) else f"{type(error).__name__}: {error}"


def _finish(draft: Draft, rules: Rules, outcome: Outcome) -> None:
    text = "\n\n".join(clean_blocks(draft.blocks, draft.title))
    words = count_words(text)
    title = tidy_title(clean_text(draft.title))
    problem = _length_problem(words, rules)
    if problem is not None:
        outcome.drops.append(Drop(*problem, draft.where, title, words))
        return
    normal = normal_words(text)
    if not normal:
        outcome.drops.append(Drop("no words", "signs only", draft.where, title, words))
        return
    prompt, prompt_from = clean_text(draft.prompt), "source"
    if prompt and find_leak(prompt, text, title) is not None:
        outcome.leaking_prompts += 1
        prompt = ""
    if (unsized := without_length(prompt)) != prompt:
        outcome.sized_prompts += 1
        prompt = unsized
    if not prompt:
        prompt, prompt_from = safe_extract(title, text), "extractive"
    grams = grams_of(normal)
    story = Story(
        uid=hashlib.sha256(" ".join(normal).encode()).hexdigest()[:16],
        title=title,
        author=_line(draft.author),
        source=_line(draft.source),
        text=text,
        words=words,
        where=draft.where,
        prompt=prompt,
        prompt_from=prompt_from,
        reasoning=clean_text(draft.reasoning),
        rights=_line(draft.rights),
        folder=draft.folder,
    )
    outcome.stories.append(Finished(story, grams.tobytes(), signature(grams)))


def _line(text: str) -> str:
    return " ".join(clean_text(text).split())


def _length_problem(words: int, rules: Rules) -> tuple[str, str] | None:
    if not words:
        return "no words", "nothing is left after cleaning"
    if words < rules.min_words:
        return "too short", f"fewer than --min-words {rules.min_words}"
    if words > rules.max_words:
        return "too long", f"more than --max-words {rules.max_words}"
    return None
