"""What can be wrong with a journal, told once: the setting, its value, the fault, the remedy."""

from __future__ import annotations

import sqlite3

from ...types import UserError

_ELSEWHERE = "give another path with judge.journal, or judge.journal=off to keep none"
_WHOLE = f"move the file away to start a new one, or {_ELSEWHERE}"
_LATER = (
    "judgements that were paid are kept: make room or mend the disk, then go on with "
    f"resume_from_checkpoint, or {_ELSEWHERE}"
)
# SQLite's primary result codes -> what happened, what to do.
_FAULTS = {
    sqlite3.SQLITE_READONLY: ("it cannot be written", f"make it writable, {_ELSEWHERE}"),
    sqlite3.SQLITE_CANTOPEN: (
        "it cannot be opened or created in its folder",
        f"make the folder writable, {_ELSEWHERE}",
    ),
    sqlite3.SQLITE_PERM: ("it cannot be opened", f"make it readable and writable, {_ELSEWHERE}"),
    sqlite3.SQLITE_BUSY: (
        "another process keeps it locked",
        f"end the process that holds it, or {_ELSEWHERE}",
    ),
    sqlite3.SQLITE_PROTOCOL: (
        "its file system cannot lock it",
        "put it on a local disk with judge.journal, or set judge.journal=off to keep none",
    ),
    sqlite3.SQLITE_NOTADB: ("it is no SQLite file", _WHOLE),
    sqlite3.SQLITE_CORRUPT: ("it is damaged", _WHOLE),
    sqlite3.SQLITE_FULL: ("its disk is full", _LATER),
    sqlite3.SQLITE_IOERR: ("its disk cannot be written or read: a full quota, or a fault", _LATER),
}


class JournalError(UserError):
    """The journal cannot be used; names `judge.journal`, its value and the remedy."""


def refused(path: object, fault: str, remedy: str) -> JournalError:
    """The one form of all these messages."""
    return JournalError(f"judge.journal: {path}: {fault}; {remedy}")


def damaged(path: object, finding: str) -> JournalError:
    """What SQLite's own check found, on one line."""
    return refused(path, f"it is damaged ({' '.join(finding.split())})", _WHOLE)


def translated(path: object, error: sqlite3.Error) -> JournalError:
    """A SQLite error in the user's terms."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    fault, remedy = _FAULTS.get(code, ("SQLite refuses it", _ELSEWHERE))
    return refused(path, f"{fault} ({error})", remedy)
