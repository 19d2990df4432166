"""Stories on the disk while the data set is made: memory holds numbers, never texts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .document import Story


class Stage:
    """A scratch database; it goes with its folder."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = OFF")  # scratch: nothing to recover
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(
            "CREATE TABLE story (number INTEGER PRIMARY KEY, fields TEXT, grams BLOB)"
        )
        self._connection.execute("BEGIN")

    def close(self) -> None:
        """Give the file up."""
        self._connection.close()

    def put(self, number: int, story: Story, grams: bytes) -> None:
        """Keep a story and its 5-grams (uint32 as bytes)."""
        self._connection.execute(
            "INSERT INTO story VALUES (?, ?, ?)", (number, json.dumps(asdict(story)), grams)
        )

    def replace(self, number: int, story: Story) -> None:
        """Keep a story that has gained fields."""
        self._connection.execute(
            "UPDATE story SET fields = ? WHERE number = ?", (json.dumps(asdict(story)), number)
        )

    def story(self, number: int) -> Story:
        """One story."""
        row = self._connection.execute("SELECT fields FROM story WHERE number = ?", (number,))
        return Story(**json.loads(row.fetchone()[0]))

    def stories(self, numbers: Iterable[int]) -> Iterator[tuple[int, Story]]:
        """Stories one by one, in the given order."""
        for number in numbers:
            yield number, self.story(number)

    def grams(self, number: int) -> np.ndarray:
        """(G,) uint32, sorted."""
        row = self._connection.execute("SELECT grams FROM story WHERE number = ?", (number,))
        return np.frombuffer(row.fetchone()[0], dtype=np.uint32)
