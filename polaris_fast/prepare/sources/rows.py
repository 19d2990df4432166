"""JSONL and parquet: one story a row, taken in portions so that no file is held whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..document import Draft, SourceError

PORTION_ROWS = 64
PORTION_BYTES = 2 * 2**20
STORY_FIELDS = ("story", "text")

Portion = tuple[int, list[Any]]  # number of the first row, from 1; rows as bytes or mappings


def portions_of_jsonl(path: Path) -> Iterator[Portion]:
    """Lines of the file as they are."""
    with path.open("rb") as file:
        first, rows, size = 1, [], 0  # type: int, list[Any], int
        for number, line in enumerate(file, start=1):
            if not rows:
                first = number
            rows.append(line)
            size += len(line)
            if size >= PORTION_BYTES:
                yield first, rows
                rows, size = [], 0
        if rows:
            yield first, rows


def portions_of_parquet(path: Path) -> Iterator[Portion]:
    """Rows as mappings. Raises SourceError: not readable."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as table:
            number = 1
            for batch in table.iter_batches(batch_size=PORTION_ROWS):
                rows = batch.to_pylist()
                yield number, rows
                number += len(rows)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise SourceError(f"not readable parquet ({error})") from error


def draft_of_row(row: Any, name: str, number: int) -> Draft | None:
    """The story of one row; None for a blank line.

    Raises:
        SourceError: no JSON object, or no `story` or `text` in it.
    """
    if isinstance(row, bytes):
        if not row.strip():
            return None
        try:
            row = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"not valid JSON ({error})") from error
    if not isinstance(row, Mapping):
        raise SourceError(f"a {type(row).__name__} instead of an object with a story")
    story = next((row[key] for key in STORY_FIELDS if isinstance(row.get(key), str)), "")
    if not story.strip():
        raise SourceError(f"no text in {' or '.join(STORY_FIELDS)}; its fields are: "
                          f"{', '.join(map(str, list(row)[:8])) or 'none'}")  # fmt: skip
    return Draft(
        title=_field(row, "title"),
        author=_field(row, "author"),
        source=_field(row, "source") or Path(name).name,
        blocks=tuple(story.replace("\r\n", "\n").split("\n\n")),
        where=f"{name}:{number}",
        prompt=_field(row, "prompt"),
        reasoning=_field(row, "reasoning"),
        rights=_field(row, "rights") or _field(row, "license"),
    )


def _field(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return str(value).strip() if isinstance(value, str | int | float) else ""
