"""JSON lines on the disk, one a finished piece of work, found again by its key.

A process that is killed while it writes leaves half a line; it is cut off when the file is opened
again, and that piece is done anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import IO, Any, Self

from ..types import UserError


class JsonLines:
    """An append-only file of objects with a `key`; use as a context manager."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """
        Args:
            read_only: look at what is there, and change nothing.
        """
        self.path, self._read_only = path, read_only
        self._found: dict[str, dict[str, Any]] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        if self._read_only and not self.path.exists():
            return self
        try:
            if not self._read_only:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("rb" if self._read_only else "a+b")
            self._found = self._read(self._file)
        except UserError:
            self.__exit__()
            raise
        except OSError as error:
            raise UserError(
                f"--out: {self.path} cannot be {'read' if self._read_only else 'written'} "
                f"({error.strerror}); give another folder"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._found[key]

    def append(self, key: str, value: dict[str, Any]) -> dict[str, Any]:
        """Keep a piece of work; it is on its way to the disk when this returns."""
        assert self._file is not None  # entered
        entry = {"key": key, **value}
        # a sampled text may hold half of a surrogate pair, which only ASCII escapes can say
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        self._found[key] = entry
        return entry

    def _read(self, file: IO[bytes]) -> dict[str, dict[str, Any]]:
        file.seek(0)
        found, end = {}, 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                found[entry["key"]] = entry
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"--out: {self.path}:{number} is no line of an evaluation ({error}); move the "
                    "file away, or give another folder"
                ) from error
            end += len(line)
        if not self._read_only:
            file.truncate(end)
            file.seek(0, os.SEEK_END)
        return found


def key_of(*parts: Any) -> str:
    """A name for a piece of work by everything it follows from; JSON values only."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
