"""Opening a journal's file: every reason why it cannot be trusted is found here, before a call."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ...sqlite_locks import BUSY_TIMEOUT_S, patiently
from . import mounts
from .errors import JournalError, damaged, refused, translated
from .schema import ForeignFile, migrate

_LOCAL = "put it on a local disk with judge.journal, or set judge.journal=off to keep none"


def open_file(path: Path) -> sqlite3.Connection:
    """A connection in WAL mode to the journal at `path`, at the present schema.

    Raises:
        JournalError: see `Journal.open`.
    """
    if path.is_dir():
        raise refused(path, "it is a folder", "give the path of a file with judge.journal")
    kind = mounts.network_kind(path)
    if kind is not None:
        raise refused(path, f"it lies on a network file system ({kind})", _LOCAL)
    connection = None
    try:
        connection = _connect(str(path))
        patiently(BUSY_TIMEOUT_S)(_use_wal, connection, path)
        migrate(connection)
        _check(connection, path)
    except BaseException as error:
        if connection is not None:
            connection.close()
        raise _in_users_terms(path, error) from error
    return connection


def open_private() -> sqlite3.Connection:
    """A journal without a name, gone with its connection; spills to disk when it grows."""
    connection = _connect("")
    connection.execute("PRAGMA journal_mode = MEMORY")
    migrate(connection)
    return connection


def _connect(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        name,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,  # transactions are written out
        check_same_thread=False,  # `Journal` has a lock
    )
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _use_wal(connection: sqlite3.Connection, path: Path) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise refused(path, "its file system has no shared memory for SQLite's log", _LOCAL)
    connection.execute("PRAGMA synchronous = NORMAL")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Only the table that rewards are served from: the answers' texts would take seconds."""
    found = connection.execute("PRAGMA quick_check('jobs')").fetchone()[0]
    if found != "ok":
        raise damaged(path, str(found))


def _in_users_terms(path: Path, error: BaseException) -> BaseException:
    if isinstance(error, JournalError):
        return error
    if isinstance(error, ForeignFile):
        remedy = "upgrade polaris_fast, or give another path with judge.journal"
        return refused(path, str(error), remedy)
    return translated(path, error) if isinstance(error, sqlite3.Error) else error
