"""Answers of the endpoint that are paid for: kept in SQLite, never asked for twice.

An answer is committed before it is used, so that after `kill -9` only requests that were under way
are sent again. Keys are hashes of everything that was asked; no key of an endpoint is kept.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...sqlite_locks import BUSY_TIMEOUT_S, patiently
from ...types import UserError
from .messages import VERSION, Messages

APPLICATION_ID = 0x504C5250  # "PLRP": no other program's file is written to
_SCHEMA = """CREATE TABLE IF NOT EXISTS answer (
    key TEXT PRIMARY KEY, text TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cost_usd REAL,
    answered_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) STRICT"""


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer and what it used up; the cost is None where the price is unknown."""

    text: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None


class PromptJournal:
    """The file at `path`; for one thread."""

    def __init__(self, path: Path) -> None:
        """Raises UserError: another program's file, damaged, or not writable."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
            patiently(BUSY_TIMEOUT_S)(self._prepare)
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"--journal: {path} cannot be used ({error}); remove it, or give another file"
            ) from error

    def _prepare(self) -> None:
        owner = self._connection.execute("PRAGMA application_id").fetchone()[0]
        tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if owner != APPLICATION_ID and tables:
            self._connection.close()
            raise UserError(f"--journal: {self.path} is another program's; give another file")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(_SCHEMA)
        self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def close(self) -> None:
        """Give the file up."""
        self._connection.close()

    def get(self, key: str) -> Kept | None:
        """The answer to what has this key, or None. Raises UserError: the file is out of reach."""
        with self._named():
            row = self._connection.execute(
                "SELECT text, prompt_tokens, cached_tokens, completion_tokens, cost_usd "
                "FROM answer WHERE key = ?",
                (key,),
            ).fetchone()
        return Kept(*row) if row else None

    def put(self, key: str, kept: Kept) -> None:
        """Keep an answer, on the disk when this returns. Raises UserError: its disk is full."""
        with self._named():
            self._connection.execute(
                "INSERT OR REPLACE INTO answer (key, text, prompt_tokens, cached_tokens, "
                "completion_tokens, cost_usd) VALUES (?, ?, ?, ?, ?, ?)",
                (key, kept.text, kept.prompt_tokens, kept.cached_tokens, kept.completion_tokens,
                 kept.cost_usd),
            )  # fmt: skip

    @contextmanager
    def _named(self) -> Iterator[None]:
        """The journal may be on another disk than `--out`: its errors say which."""
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"--journal: {self.path} cannot be read or written ({error}); what it holds is kept"
            ) from error


def answer_key(url: str, model: str, sampling: dict[str, object], messages: Messages) -> str:
    """Hash of everything that an answer depends on."""
    asked = json.dumps([VERSION, url, model, sampling, messages], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()
