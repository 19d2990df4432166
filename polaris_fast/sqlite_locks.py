"""Waiting for another process's lock where SQLite itself gives up at once.

Its busy timeout does not cover the change to WAL: of two processes that open a new file together
one is told "database is locked" without having waited.
"""

from __future__ import annotations

import sqlite3

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

BUSY_TIMEOUT_S = 10.0  # another process's commit takes about a millisecond


def patiently(limit_s: float) -> Retrying:
    """Calls a function again, for `limit_s` seconds, as long as SQLite finds its file locked.

    The last sqlite3.OperationalError goes to the caller.
    """
    return Retrying(
        retry=retry_if_exception(_is_busy),
        wait=wait_random(0.005, 0.05),
        stop=stop_after_delay(limit_s),
        reraise=True,
    )


def _is_busy(error: BaseException) -> bool:
    # the low byte is the kind; the others say which of its forms
    return isinstance(error, sqlite3.OperationalError) and (
        (error.sqlite_errorcode & 0xFF) == sqlite3.SQLITE_BUSY
    )
