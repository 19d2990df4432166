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

Portion = tuple[int, list[Any]]  # first row's number, from 1; bytes, mappings or errors


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
    """Rows as mappings; a row with text that is not UTF-8 as the SourceError that it is.

    Raises:
        SourceError: not readable.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as table:
            number = 1
            for batch in table.iter_batches(batch_size=PORTION_ROWS):
                rows = _rows_of(batch)
                yield number, rows
                number += len(rows)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"not readable parquet ({error})") from error


def _rows_of(batch: Any) -> list[Any]:
    try:
        rows: list[Any] = batch.to_pylist()
        return rows
    except UnicodeDecodeError:  # parquet promises UTF-8, and not all writers keep that
        return [_row_of(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _row_of(row: Any) -> Any:
    values = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            values[name] = column.to_pylist()[0]
        except UnicodeDecodeError as error:
            return SourceError(f"{name} is not UTF-8 ({error.reason}); convert it")
    return values


def draft_of_row(row: Any, name: str, number: int) -> Draft | None:
    """The story of one row; None for a blank line.

    Raises:
        SourceError: no JSON object, or no `story` or `text` in it.
    """
    if isinstance(row, SourceError):
        raise row
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
