"""The journal's tables, and the way from an older file to them.

    sessions   one row an opened journal: its run, and the process, to tell a killed one by
    jobs       one row a judgement (one sample of one text by one judge), named by its key
    attempts   one row a request: written before it is sent, filled when its answer is there

Times are seconds since 1970, durations seconds, costs USD. `PRAGMA user_version` counts the
migrations that a file has had; a released migration is never edited, only followed by another.
"""

from __future__ import annotations

import sqlite3

APPLICATION_ID = 0x504F4C4A  # "POLJ": tells a journal from any other SQLite file

_VERSION_1 = (
    """
    CREATE TABLE sessions (
        id INTEGER PRIMARY KEY,
        run TEXT NOT NULL,
        process TEXT NOT NULL,
        opened_at REAL NOT NULL,
        closed_at REAL
    )
    """,
    """
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL CHECK (state IN ('pending', 'scored', 'failed', 'rejected')),
        run TEXT NOT NULL,
        row_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        row_group TEXT,
        sample INTEGER NOT NULL,
        words INTEGER NOT NULL,
        judge_id TEXT NOT NULL,
        model TEXT NOT NULL,
        begun_at REAL NOT NULL,
        ended_at REAL,
        quality REAL,
        dimensions TEXT,
        judge TEXT,
        flags TEXT,
        failure TEXT,
        reason TEXT,
        CHECK ((state = 'scored') = (quality IS NOT NULL))
    )
    """,
    """
    CREATE TABLE attempts (
        id INTEGER PRIMARY KEY,
        job_id INTEGER NOT NULL REFERENCES jobs (id),
        session_id INTEGER NOT NULL REFERENCES sessions (id),
        number INTEGER NOT NULL,
        purpose TEXT NOT NULL,
        begun_at REAL NOT NULL,
        ended_at REAL,
        status INTEGER,
        fault TEXT,
        request_id TEXT,
        model TEXT,
        queue_s REAL,
        first_byte_s REAL,
        total_s REAL,
        prompt_tokens INTEGER,
        cached_tokens INTEGER,
        completion_tokens INTEGER,
        reasoning_tokens INTEGER,
        cost_usd REAL,
        text TEXT,
        detail TEXT
    )
    """,
    "CREATE INDEX attempts_of_job ON attempts (job_id)",
    "CREATE INDEX attempts_without_end ON attempts (session_id) WHERE ended_at IS NULL",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_VERSION_1,)


class ForeignFile(Exception):
    """A SQLite file that is no journal, or one of a later version; the message says which."""


def version_of(connection: sqlite3.Connection) -> int:
    """How many migrations the file has had; 0 for an empty one.

    Raises:
        ForeignFile: another program's file, or a journal of a later version.
        sqlite3.DatabaseError: no SQLite file at all.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
    num_tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if owner != APPLICATION_ID and (num_tables or version or owner):
        raise ForeignFile("it is another program's SQLite file")
    if version > len(MIGRATIONS):
        raise ForeignFile(
            f"it has schema version {version} and this polaris_fast reads up to {len(MIGRATIONS)}"
        )
    return version


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to the present schema in one transaction; nothing to do for a present one.

    Raises:
        ForeignFile, sqlite3.Error: see `version_of`; the file is as it was.
    """
    if version_of(connection) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Asked again under the lock: another process may have done it since.
        for statements in MIGRATIONS[version_of(connection) :]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
