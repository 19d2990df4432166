"""The judge's journal: one SQLite file that outlives every run and every kill.

keys       what makes two judgements the same
store      `Journal`: lookup, begin, begin_attempt, end_attempt, end
in_flight  `InFlight`: the same question twice at once is one call
path       where the file is
schema, file, mounts, reserve, process, errors   the file itself, and what can be wrong with it
queries    reading it, also while a run writes: tables, export, cost by day
"""

from __future__ import annotations

from .errors import JournalError
from .in_flight import InFlight
from .keys import job_key, judge_id, sampling_of, schema_version
from .path import journal_path
from .records import AttemptRecord, Purpose
from .store import Journal

__all__ = [
    "AttemptRecord",
    "InFlight",
    "Journal",
    "JournalError",
    "Purpose",
    "job_key",
    "journal_path",
    "judge_id",
    "sampling_of",
    "schema_version",
]
