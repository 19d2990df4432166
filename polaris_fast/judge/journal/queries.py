"""Reading a journal, also one that a run is writing to: never blocks it, never changes the file.

with reading(path) as connection:
    jobs_by_state(connection), attempts_by_class(connection), costs_by_day(connection)
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..sketch import percentile
from .errors import refused, translated
from .path import FILE_NAME
from .schema import MIGRATIONS, ForeignFile, version_of

STATES = ("scored", "failed", "rejected", "pending")
OPEN = "open"  # class of an attempt whose answer is awaited, or whose process was killed
ANSWERED = "answered"  # class of an attempt that brought a reward
_CLASS = f"CASE WHEN ended_at IS NULL THEN '{OPEN}' ELSE coalesce(fault, '{ANSWERED}') END"


@dataclass(frozen=True, slots=True)
class JobCount:
    """Jobs of one judge and kind of row."""

    judge_id: str
    kind: str
    states: dict[str, int]  # by STATES
    quality: float | None  # mean of the scored ones


@dataclass(frozen=True, slots=True)
class AttemptCount:
    """Requests that were sent for one purpose and ended in one class."""

    fault: str  # a failure class, ANSWERED, OPEN or "lost"
    purpose: str
    num_attempts: int
    p50_s: float | None
    p95_s: float | None


@dataclass(frozen=True, slots=True)
class DayCost:
    """What one model was paid on one day (UTC)."""

    day: str
    model: str
    num_attempts: int
    num_lost: int  # begun, their answers never seen: perhaps paid, their cost unknown
    num_unpriced: int  # answered without a known cost
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_usd: float | None  # of the attempts whose cost is known; None: of none
    probable_usd: float  # of it, estimated: of requests that were sent and whose answers never came


@dataclass(frozen=True, slots=True)
class FailedJob:
    """A judgement that could not be had."""

    run: str
    row_id: str
    failure: str
    reason: str


def find_journal(place: Path) -> Path:
    """The journal meant by its own path, by a run's folder, or by the folder of the runs.

    Raises:
        JournalError: there is none.
    """
    places = [place] if place.is_file() else [place / FILE_NAME, place.resolve().parent / FILE_NAME]
    for path in places:
        if path.is_file():
            return path
    raise refused(place, "there is no journal", f"give the path of a {FILE_NAME}")


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees one moment of the journal, whatever is written meanwhile.

    Raises:
        JournalError: damaged, another program's file, of another version, or not readable.
    """
    connection = None
    try:
        connection = _connect(path)
        connection.execute("BEGIN")
        if version_of(connection) != len(MIGRATIONS):
            raise ForeignFile("it has the schema of an earlier version, or none yet")
        yield connection
    except ForeignFile as error:
        raise refused(path, str(error), "let a run of the present version open it") from error
    except sqlite3.Error as error:
        raise translated(path, error) from error
    finally:
        if connection is not None:
            connection.close()


def jobs_by_state(connection: sqlite3.Connection, run: str | None = None) -> list[JobCount]:
    """Counts by judge and kind of row."""
    rows = connection.execute(
        "SELECT judge_id, kind, state, count(*), avg(quality) FROM jobs "
        f"WHERE {_OF_RUN} GROUP BY judge_id, kind, state ORDER BY judge_id, kind",
        {"run": run},
    )
    states: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    quality: dict[tuple[str, str], float] = {}
    for judge_id, kind, state, count, mean in rows:
        states[judge_id, kind][state] = count
        if mean is not None:
            quality[judge_id, kind] = mean
    return [
        JobCount(judge_id, kind, found, quality.get((judge_id, kind)))
        for (judge_id, kind), found in states.items()
    ]


def attempts_by_class(connection: sqlite3.Connection, run: str | None = None) -> list[AttemptCount]:
    """Counts by class and purpose, the commonest first, with seconds of the requests."""
    rows = connection.execute(
        f"SELECT {_CLASS} AS class, purpose, total_s FROM attempts "
        f"WHERE {_ATTEMPTS_OF_RUN} ORDER BY total_s",
        {"run": run},
    )
    counts: dict[tuple[str, str], int] = defaultdict(int)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for fault, purpose, total_s in rows:
        counts[fault, purpose] += 1
        if total_s is not None:
            seconds[fault, purpose].append(total_s)
    found = []
    for (fault, purpose), count in sorted(counts.items(), key=lambda item: -item[1]):
        times = seconds[fault, purpose]
        p50, p95 = (percentile(times, p) if times else None for p in (50, 95))
        found.append(AttemptCount(fault, purpose, count, p50, p95))
    return found


def costs_by_day(connection: sqlite3.Connection, run: str | None = None) -> list[DayCost]:
    """Sums by day (UTC) and model: the one that answered, else the one that was asked."""
    rows = connection.execute(
        f"""
        SELECT date(begun_at, 'unixepoch') AS day,
               coalesce(model, (SELECT model FROM jobs WHERE jobs.id = job_id)) AS answered_by,
               count(*), sum({_CLASS} IN ('lost', '{OPEN}')),
               sum({_CLASS} = '{ANSWERED}' AND cost_usd IS NULL),
               coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0),
               coalesce(sum(completion_tokens), 0), coalesce(sum(reasoning_tokens), 0),
               sum(cost_usd), coalesce(sum(CASE WHEN text IS NULL THEN cost_usd END), 0.0)
        FROM attempts WHERE {_ATTEMPTS_OF_RUN} GROUP BY day, answered_by ORDER BY day, answered_by
        """,
        {"run": run},
    )
    return [DayCost(*row) for row in rows]


def last_failures(
    connection: sqlite3.Connection, number: int, run: str | None = None
) -> list[FailedJob]:
    """The latest jobs without a reward, the newest first."""
    rows = connection.execute(
        "SELECT run, row_id, failure, reason FROM jobs "
        f"WHERE state IN ('failed', 'rejected') AND {_OF_RUN} ORDER BY ended_at DESC LIMIT :number",
        {"run": run, "number": number},
    )
    return [FailedJob(*row) for row in rows]


def lost_attempts(connection: sqlite3.Connection, run: str | None = None) -> int:
    """Attempts whose process ended before their answer was kept."""
    query = f"SELECT count(*) FROM attempts WHERE fault = 'lost' AND {_ATTEMPTS_OF_RUN}"
    return int(connection.execute(query, {"run": run}).fetchone()[0])


def runs(connection: sqlite3.Connection) -> list[str]:
    """Names of the runs, in the order of their first job."""
    return [row[0] for row in connection.execute("SELECT run FROM jobs GROUP BY run ORDER BY id")]


def export_rows(
    connection: sqlite3.Connection, table: str, run: str | None = None
) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """Column names and rows of `jobs`, or of `attempts` with the key and row of their job."""
    if table == "jobs":
        query = f"SELECT * FROM jobs WHERE {_OF_RUN} ORDER BY id"
    else:
        query = (
            "SELECT jobs.key, jobs.run, jobs.row_id, jobs.sample, attempts.* FROM attempts "
            f"JOIN jobs ON jobs.id = job_id WHERE {_OF_RUN} ORDER BY attempts.id"
        )
    cursor = connection.execute(query, {"run": run})
    return [column[0] for column in cursor.description], iter(cursor)


_OF_RUN = "(:run IS NULL OR run = :run)"
_ATTEMPTS_OF_RUN = "(:run IS NULL OR job_id IN (SELECT id FROM jobs WHERE run = :run))"


def _connect(path: Path) -> sqlite3.Connection:
    address = f"file:{quote(str(path.resolve()))}?mode=ro"
    try:
        connection = sqlite3.connect(address, uri=True, isolation_level=None)
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        # In a folder that cannot be written SQLite wants to be told that nobody writes: true
        # where no log is left beside the file.
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CANTOPEN or _log(path).exists():
            raise
        connection = sqlite3.connect(address + "&immutable=1", uri=True, isolation_level=None)
    return connection


def _log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")
