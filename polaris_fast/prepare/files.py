"""The files that are read, and the folder that is written: whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..types import UserError
from .bins import bin_of
from .document import Story
from .settings import Settings
from .work import SUFFIXES

BATCH_ROWS = 256


def find_files(settings: Settings) -> tuple[list[tuple[Path, str]], Counter[str]]:
    """((path as given, name below its source) of each file to read, others by their suffix).

    A file that several paths lead to is read once; its kind is that of the first path, not of what
    a link leads to.

    Raises:
        UserError: there is nothing to read.
    """
    found: dict[Path, tuple[Path, str]] = {}  # by where the path leads
    others: Counter[str] = Counter()
    out = settings.out.resolve()
    for source in settings.sources:
        if source.is_file():
            if source.suffix.lower() not in SUFFIXES:
                raise UserError(
                    f"SOURCE: {source} is no {', '.join(s[1:] for s in SUFFIXES)} file; convert it"
                )
            found.setdefault(source.resolve(), (source, source.name))
            continue
        for path in sorted(source.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
            if hidden or not path.is_file() or out in path.resolve().parents:
                continue
            if path.suffix.lower() in SUFFIXES:
                found.setdefault(path.resolve(), (path, str(path.relative_to(source))))
            else:
                others[path.suffix.lower() or "without a suffix"] += 1
    if not found:
        where = ", ".join(map(str, settings.sources))
        raise UserError(
            f"SOURCE: {where} holds no file of a known kind ({', '.join(SUFFIXES)}); convert yours"
        )
    return list(found.values()), others


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, on the same disk; gone at the end, however it comes.

    Raises:
        UserError: it cannot be made, the disk is full, or another file that the error names.
    """
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=parent))
    except OSError as error:
        raise UserError(f"--out: {out} cannot be made ({error.strerror})") from error
    try:
        yield scratch
    except (OSError, sqlite3.Error) as error:
        named = getattr(error, "filename", None)
        if named is not None and not _lies_in(named, (scratch, out)):
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{os.fsdecode(named)}: {reason}; nothing was changed") from error
        raise UserError(f"--out: {out} cannot be written ({error}); nothing was changed") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _lies_in(name: str | bytes, folders: Iterable[Path]) -> bool:
    path = Path(os.fsdecode(name)).absolute()
    return any(path.is_relative_to(folder.absolute()) for folder in folders)


def put_in_place(folder: Path, out: Path) -> None:
    """Rename a finished folder to `out`; an older one gives way, and comes back if that fails."""
    if not out.exists():
        os.replace(folder, out)
        return
    old = folder.with_name("replaced")
    os.replace(out, old)
    try:
        os.replace(folder, out)
    except OSError:
        os.replace(old, out)
        raise


def record_of(story: Story) -> dict[str, Any]:
    """One line of the data set, with the fields that training reads, and who wrote the story."""
    fields: dict[str, Any] = {
        "uid": story.uid,
        "prompt": story.prompt,
        "target_word_count": story.words,
        "story": story.text,
    }
    if story.reasoning:
        fields["reasoning"] = story.reasoning
    return fields | {
        "source": story.source,
        "title": story.title,
        "author": story.author,
        "length_bin": bin_of(story.words),
        "prompt_from": story.prompt_from,
    }


def write_records(path: Path, stories: Iterable[Story]) -> int:
    """Write JSONL or parquet, by the suffix, a few stories at a time; returns how many."""
    if path.suffix == ".parquet":
        return _write_parquet(path, stories)
    num = 0
    with path.open("w", encoding="utf-8") as file:
        for story in stories:
            file.write(json.dumps(record_of(story), ensure_ascii=False) + "\n")
            num += 1
        file.flush()
        os.fsync(file.fileno())
    return num


def _write_parquet(path: Path, stories: Iterable[Story]) -> int:
    import pyarrow
    import pyarrow.parquet as parquet

    names = ("uid", "prompt", "target_word_count", "story", "reasoning", "source", "title",
             "author", "length_bin", "prompt_from")  # fmt: skip
    schema = pyarrow.schema(
        [(n, pyarrow.int64() if n == "target_word_count" else pyarrow.string()) for n in names]
    )
    num = 0
    with parquet.ParquetWriter(path, schema) as writer:
        batch: list[dict[str, Any]] = []
        for story in stories:
            batch.append(dict.fromkeys(names) | record_of(story))
            num += 1
            if len(batch) == BATCH_ROWS:
                writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
                batch = []
        if batch:
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
    return num
