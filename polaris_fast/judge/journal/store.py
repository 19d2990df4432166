"""`Journal`: every judgement and every request on disk, so that none is lost and none paid twice.

    with Journal(path, run="runs/a", secrets=[key]) as journal:
        if (scored := journal.lookup(key)) is None:
            journal.begin(key, job=job, sample=0, judge_id=judge, model=model)
            attempt = journal.begin_attempt(key, number=1)      # on disk before the request is sent
            ...
            journal.end_attempt(attempt, record, scored)        # answer and reward in one commit

What holds (SQLite in WAL mode, `synchronous=NORMAL`):

- **A killed process** loses nothing that was committed. A job with a reward is served by `lookup`
  and never asked again; any other job is asked again. An attempt that was begun and not ended is
  closed by the next `open` with fault `lost`: its answer may have been paid for and is gone.
- **A power cut** may lose the last commits, never the file: those answers are paid for again.
- **A full disk** (or any other failure to write): `begin` and `begin_attempt` raise from then on,
  so nothing more is paid. `end_attempt` first gives up a reserve of space that `open` set aside,
  enough for the answers then under way; when even that is too small, or another program takes it,
  it raises: the answer in memory stays good for this run, and alone would be paid for again.

Several processes may use one file on one machine. Two that ask the same question at the same
moment both pay; `InFlight` joins them within a process.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from ...types import Failed, Outcome, Rejected, Scored
from ..jobs import JudgeJob
from . import process, statements
from .errors import JournalError, translated
from .file import open_file, open_private
from .records import LOST, AttemptRecord, Purpose
from .reserve import Reserve

log = logging.getLogger(__name__)


class Journal:
    """One connection to a journal; a context manager. Calls may come from any thread."""

    def __init__(
        self,
        path: Path | None,
        *,
        run: str = "",
        secrets: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
        is_alive: Callable[[str], bool] = process.is_alive,
    ) -> None:
        """Nothing is opened before `open` or `with`.

        Args:
            path: the SQLite file, created with its folder; None: a private one that is gone
                after `close` and keeps no answers' texts.
            run: name of the run, kept beside each job it is the first to ask for.
            secrets: texts that must never be written, such as the endpoint's key.
            clock: seconds since 1970.
            is_alive: whether the process of a token still runs, see `process`.
        """
        self.path = path
        self._run, self._secrets = run, [text for text in secrets if text]
        self._clock, self._is_alive = clock, is_alive
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._reserve: Reserve | None = None
        self._session = 0
        self._fault: JournalError | None = None
        self.num_lost_found = 0  # attempts that `open` found without an end

    def open(self) -> Self:
        """Open or create the file, and close the attempts of killed processes as lost.

        Raises:
            JournalError: read-only, damaged, of a later version, another program's, on a network
                file system, or no room; names `judge.journal`, the path and the remedy.
        """
        try:
            if self.path is None:
                self._connection = open_private()
            else:
                self._reserve = Reserve(self.path)
                self._connection = open_file(self.path)
            with self._transaction() as connection:
                self._lose_the_dead(connection)
                row = (self._run, process.process_token(os.getpid()), self._clock())
                self._session = _id_of(
                    connection.execute(
                        "INSERT INTO sessions (run, process, opened_at) VALUES (?, ?, ?)", row
                    )
                )
        except BaseException:
            self._shut()
            raise
        return self

    def close(self) -> None:
        """Close the file; may be called twice. Attempts without an end are lost from now on."""
        if self._connection is None:
            return
        try:
            with self._transaction() as connection:
                now = self._clock()
                connection.execute(statements.LOSE, (now, LOST, self._session))
                connection.execute(
                    "UPDATE sessions SET closed_at = ? WHERE id = ?", (now, self._session)
                )
        except JournalError as error:
            log.warning("%s", error)  # the next `open` finds them
        finally:
            self._shut()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # the way of a job -------------------------------------------------------------------------

    def lookup(self, key: str) -> Scored | None:
        """The reward of a finished judgement; None for any other: failures are never served."""
        with self._reading() as connection:
            row = connection.execute(statements.LOOKUP, (key,)).fetchone()
        if row is None:
            return None
        quality, dimensions, judge, flags = row
        return Scored(quality, json.loads(dimensions), judge, tuple(json.loads(flags)))

    def begin(self, key: str, *, job: JudgeJob, sample: int, judge_id: str, model: str) -> None:
        """Note that a judgement is wanted; a scored one stays scored, a failed one is anew pending.

        Raises:
            JournalError: it cannot be written: do not send.
        """
        self._check_sound()
        asker = (self._run, job.job_id, job.kind.value, job.group)
        row = (sample, len(job.story.split()), judge_id, model, self._clock())
        with self._transaction() as connection:
            connection.execute(statements.BEGIN, (key, *asker, *row))

    def begin_attempt(self, key: str, *, number: int, purpose: str = Purpose.FIRST) -> int:
        """Note a request that is about to be sent; committed when this returns.

        Args:
            number: of the attempt within its job, from 1.
            purpose: a `Purpose`.

        Returns:
            The attempt's id, for `end_attempt`.

        Raises:
            JournalError: it cannot be written: do not send.
            KeyError: `begin` was not called for the key.
        """
        self._check_sound()
        row = (self._session, number, Purpose(purpose).value, self._clock(), key)
        with self._transaction() as connection:
            cursor = connection.execute(statements.BEGIN_ATTEMPT, row)
            if cursor.rowcount != 1:
                raise KeyError(f"Journal.begin_attempt: no job {key}; call begin first")
            return _id_of(cursor)

    def end_attempt(
        self, attempt_id: int, record: AttemptRecord, scored: Scored | None = None
    ) -> None:
        """Keep how a request ended and, in the same transaction, the reward it brought.

        Raises:
            JournalError: not even the reserve holds it; the reward in memory is still good.
            ValueError: the reward is no finite number.
        """
        if scored is not None and not math.isfinite(scored.quality):
            raise ValueError(f"Journal.end_attempt: quality must be finite, got {scored.quality}")
        try:
            self._end_attempt(attempt_id, self._clean(record), scored)
        except JournalError:
            if self._reserve is None or not self._reserve.release():
                raise
            self._end_attempt(attempt_id, self._clean(record), scored)

    def end(self, key: str, outcome: Outcome) -> None:
        """Note that a judgement could not be had; nothing to do for a Scored one.

        A full disk is no error here: a pending job and a failed one are both asked for again.
        """
        match outcome:
            case Scored():
                return
            case Failed(reason, kind):
                state = "failed"
            case Rejected(reason):
                state, kind = "rejected", "refusal"
        row = (state, self._clock(), kind, self._without_secrets(reason), key)
        try:
            with self._transaction() as connection:
                connection.execute(statements.END, row)
        except JournalError as error:
            log.debug("not kept: %s", error)

    def lost_attempts(self) -> int:
        """Attempts in the whole file whose process ended before their answer was kept."""
        query = "SELECT count(*) FROM attempts WHERE fault = ?"
        with self._reading() as connection:
            return int(connection.execute(query, (LOST,)).fetchone()[0])

    @property
    def fault(self) -> JournalError | None:
        """Why nothing more may be paid, or None: a run that finds it set ends."""
        return self._fault

    # below --------------------------------------------------------------------------------

    def _end_attempt(self, attempt_id: int, record: AttemptRecord, scored: Scored | None) -> None:
        now = self._clock()
        with self._transaction() as connection:
            connection.execute(
                statements.END_ATTEMPT, (now, *statements.values_of(record), attempt_id)
            )
            if scored is not None:
                judge = self._without_secrets(scored.judge)
                reward = (scored.quality, json.dumps(scored.dimensions), judge)
                connection.execute(
                    statements.SCORE, (now, *reward, json.dumps(scored.flags), attempt_id)
                )

    def _lose_the_dead(self, connection: sqlite3.Connection) -> None:
        sessions = connection.execute(
            "SELECT id, process FROM sessions WHERE closed_at IS NULL"
        ).fetchall()
        now = self._clock()
        for session, token in sessions:
            if self._is_alive(token):
                continue
            lost = connection.execute(statements.LOSE, (now, LOST, session)).rowcount
            self.num_lost_found += lost
            connection.execute("UPDATE sessions SET closed_at = ? WHERE id = ?", (now, session))

    def _check_sound(self) -> None:
        if self._fault is not None:
            raise JournalError(str(self._fault))

    def _clean(self, record: AttemptRecord) -> AttemptRecord:
        text = None if self.path is None else record.text  # nobody could read it later
        return replace(
            record,
            text=text and self._without_secrets(text),
            detail=record.detail and self._without_secrets(record.detail),
            model=record.model and self._without_secrets(record.model),
            request_id=record.request_id and self._without_secrets(record.request_id),
        )

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text.encode("utf-8", "backslashreplace").decode()  # SQLite takes no lone surrogates

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._connection is None:
                raise RuntimeError("Journal: not open; use it inside its `with` block")
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise translated(self.path, error) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    self._fault = translated(self.path, error)
                    raise self._fault from error
                raise

    def _shut(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._reserve is not None:
            self._reserve.release()


def _id_of(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None  # of a finished INSERT
    return cursor.lastrowid
