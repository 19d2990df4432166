"""Story records from JSONL, parquet, a hub data set, a folder of text files, or the samples.

Fields (docs/data.md): uid, prompt, target_word_count, story, reasoning (optional), source.
Everything else on a line is kept in `columns` for user rewards.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .config import DataConfig
from .extract_prompt import extract_prompt
from .text_stats import count_words
from .types import StoryRecord, UserError

_SAMPLE_MAX_WORDS = 60  # of the default run: what the embedded model learns within minutes
_TEXT_SUFFIXES = (".txt", ".md")


class _Line(BaseModel):
    """The shape of one record as it stands in a file."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True)

    prompt: str = Field(min_length=1)
    uid: str | None = None
    target_word_count: int | None = Field(None, ge=1)
    story: str | None = None
    reasoning: str | None = None
    source: str = ""


def load_records(config: DataConfig, key: str = "data.path") -> list[StoryRecord]:
    """All records of `config.path`, in file order, filtered by target length.

    Args:
        key: the setting that gave the path, for errors.

    Raises:
        UserError: a missing path, an unreadable line (with file and line number), a story
            without text, duplicate uids, or nothing left.
    """
    try:
        records = list(_read(config.path, config.split, key))
    except OSError as error:
        raise UserError(
            f"{key}: cannot read {error.filename or config.path} ({error.strerror or error})"
        ) from error
    low, high = config.min_target_words or 1, config.max_target_words or 10**9
    kept = [r for r in records if low <= r.target_word_count <= high]
    where = config.path or "the bundled samples"
    if not records:
        raise UserError(f"{key}: {where} holds no records; give JSONL, parquet or text files")
    if not kept:
        targets = sorted(r.target_word_count for r in records)
        raise UserError(
            f"{key}: none of the {len(records)} records of {where}, of {targets[0]} to "
            f"{targets[-1]} words, lies between data.min_target_words "
            f"({config.min_target_words}) and data.max_target_words ({config.max_target_words}); "
            "widen them"
        )
    double = [uid for uid, n in Counter(r.uid for r in kept).items() if n > 1]
    if double:
        raise UserError(f"{key}: uid {double[0]!r} appears more than once in {where}")
    return kept


def load_samples(*names: str) -> list[StoryRecord]:
    """The bundled sample stories: `micro` (20-80 words), `stories` (120-400), or both."""
    folder = Path(str(resources.files(__package__) / "samples"))
    return [r for n in names or ("micro", "stories") for r in _read_jsonl(folder / f"{n}.jsonl")]


def split_records(
    config: DataConfig, records: list[StoryRecord]
) -> tuple[list[StoryRecord], list[StoryRecord]]:
    """(training, held-out) records; membership depends on uids alone, not on order or seed.

    A record of `data.eval_path` is never trained on: its double in the training data is left out,
    known by the story (white space apart) whatever its prompt and uid, or without one by the
    prompt. The length filters are those of training only.
    """
    if config.eval_path is not None:
        unfiltered = {"path": config.eval_path, "min_target_words": None, "max_target_words": None}
        held_out = load_records(config.model_copy(update=unfiltered), "data.eval_path")
        seen = {content_of(r) for r in held_out}
        train = [r for r in records if content_of(r) not in seen]
        if not train:
            raise UserError(
                f"data.eval_path: {config.eval_path} holds every training record; give other "
                "held-out records"
            )
        return train, held_out
    count = int(config.eval_fraction * len(records))
    if config.eval_fraction > 0 and len(records) > 1:
        count = max(1, count)
    by_hash = sorted(records, key=lambda r: hashlib.sha256(r.uid.encode()).hexdigest())
    held = {r.uid for r in by_hash[:count]}
    return [r for r in records if r.uid not in held], [r for r in records if r.uid in held]


def content_of(record: StoryRecord) -> tuple[str, str]:
    """(prompt, story), one of them empty: two records that agree in it are one."""
    story = " ".join((record.story or "").split())
    return ("", story) if story else (record.prompt, "")


def with_thinking(config: DataConfig, records: list[StoryRecord]) -> DataConfig:
    """`thinking: null` settled: on when every human story comes with its reasoning."""
    if config.thinking is not None:
        return config
    reasoned = [r.reasoning is not None for r in records if r.story is not None]
    return config.model_copy(update={"thinking": bool(reasoned) and all(reasoned)})


class PromptOrder:
    """Endless shuffled passes over the records; position `n` is a function of the seed alone."""

    def __init__(self, num_records: int, seed: int) -> None:
        self.num_records, self.seed = num_records, seed
        self._epoch, self._order = -1, []  # type: int, list[int]

    def __getitem__(self, position: int) -> int:
        """Record index at this position of the run (0 is the first prompt of the first step)."""
        epoch, offset = divmod(position, self.num_records)
        if epoch != self._epoch:
            order = list(range(self.num_records))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._epoch, self._order = epoch, order
        return self._order[offset]


def _read(path: str | None, split: str, key: str) -> Iterator[StoryRecord]:
    if path is None:
        samples = load_samples("micro")
        yield from (r for r in samples if r.target_word_count <= _SAMPLE_MAX_WORDS)
        return
    where = Path(path)
    if where.is_dir():
        yield from _read_folder(where, key)
    elif where.suffix == ".jsonl" and where.is_file():
        yield from _read_jsonl(where, key)
    elif where.suffix == ".parquet" and where.is_file():
        yield from _read_parquet(where, key)
    elif where.is_file() and where.suffix in _TEXT_SUFFIXES:
        yield _from_text(where, key)
    elif where.exists():
        raise UserError(
            f"{key}: cannot read {path!r} ({where.suffix or 'no suffix'}); give .jsonl, "
            ".parquet, .txt, .md or a folder of text files"
        )
    else:
        yield from _read_hub(path, split, key)


def _read_jsonl(path: Path, key: str = "data.path") -> Iterator[StoryRecord]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            where = f"{path}:{number}"
            try:
                fields = json.loads(raw)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"{key}: {where}: not valid JSON ({error})") from error
            yield _record(fields, where, f"{path.stem}-{number}", key)


def _read_parquet(path: Path, key: str) -> Iterator[StoryRecord]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(path)
        number = 0
        for batch in table.iter_batches(batch_size=256):
            for fields in batch.to_pylist():
                number += 1
                yield _record(fields, f"{path}: row {number}", f"{path.stem}-{number}", key)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{key}: {path} is not readable parquet ({error})") from error


def _read_hub(name: str, split: str, key: str) -> Iterator[StoryRecord]:
    import datasets

    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{key}: no such file or folder {name!r}")
    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds; each means "cannot be had"
        raise UserError(
            f"{key}: {name!r} is no file or folder here, and as a hub data set it cannot be "
            f"loaded ({type(error).__name__}: {error}); check the path, the name or data.split"
        ) from error
    for number, fields in enumerate(rows, start=1):
        yield _record(fields, f"{name}[{split}]: row {number}", f"{split}-{number}", key)


def _record(fields: Any, where: str, default_uid: str, key: str) -> StoryRecord:
    try:
        line = _Line.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in fault["loc"]) or "record"
        raise UserError(
            f"{key}: {where}: {field}: {fault['msg']}, got {fault['input']!r:.80}"
        ) from error
    if line.story is not None and not line.story.strip():
        raise UserError(
            f"{key}: {where}: story: no text; remove the field for a prompt without a "
            "human story, or the line"
        )
    target = line.target_word_count
    if target is None:
        if line.story is None:
            raise UserError(
                f"{key}: {where}: target_word_count: missing, and there is no story to count; "
                "add the number of words to ask for"
            )
        target = count_words(line.story)
    return StoryRecord(
        uid=line.uid or default_uid,
        prompt=line.prompt.strip(),
        target_word_count=target,
        story=line.story.strip() if line.story else None,
        reasoning=line.reasoning.strip() if line.reasoning else None,
        source=line.source,
        columns=dict(line.model_extra or {}),
    )


def _read_folder(folder: Path, key: str) -> Iterator[StoryRecord]:
    files = sorted(p for p in folder.rglob("*") if p.suffix in _TEXT_SUFFIXES and p.is_file())
    if not files:
        raise UserError(f"{key}: no .txt or .md file in {str(folder)!r}")
    for file in files:
        yield _from_text(file, key, folder)


def _from_text(file: Path, key: str, folder: Path | None = None) -> StoryRecord:
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {file}: not UTF-8 text ({error}); convert it") from error
    title, story = _split_title(text, file.stem)
    if not story:
        raise UserError(f"{key}: {file}: story without text; write it or remove the file")
    uid = str(file.relative_to(folder).with_suffix("")) if folder else file.stem
    return StoryRecord(
        uid=uid,
        prompt=extract_prompt(title, story),
        target_word_count=count_words(story),
        story=story,
        source=str(file.name),
    )


def _split_title(text: str, stem: str) -> tuple[str, str]:
    """A short first line without a full stop, set off by a blank line, is the title."""
    first, _, rest = text.partition("\n")
    heading = first.lstrip("# ").strip()
    is_title = 0 < len(heading.split()) <= 12 and heading[-1] not in ".!?\"'"
    if is_title and rest.strip() and (first.startswith("#") or rest.startswith("\n")):
        return heading, rest.strip()
    return re.sub(r"[-_]+", " ", stem).strip().capitalize(), text
