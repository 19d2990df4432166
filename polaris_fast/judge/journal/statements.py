"""What the store says to SQLite: one statement for each turn in the way of a job."""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter

from .records import AttemptRecord

FIELDS = [field.name for field in fields(AttemptRecord)]
values_of = attrgetter(*FIELDS)  # of a record, in this order

LOOKUP = "SELECT quality, dimensions, judge, flags FROM jobs WHERE key = ? AND state = 'scored'"
# A failed job that is asked for again is pending again; a scored one stays as it is.
BEGIN = """
    INSERT INTO jobs (key, state, run, row_id, kind, row_group, sample, words, judge_id, model,
                      begun_at)
    VALUES (?, 'pending', ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (key) DO UPDATE
    SET state = 'pending', ended_at = NULL, failure = NULL, reason = NULL
    WHERE state IN ('failed', 'rejected')
"""
BEGIN_ATTEMPT = """
    INSERT INTO attempts (job_id, session_id, number, purpose, begun_at)
    SELECT id, ?, ?, ?, ? FROM jobs WHERE key = ?
"""
END_ATTEMPT = (
    f"UPDATE attempts SET ended_at = ?, {', '.join(f'{name} = ?' for name in FIELDS)} WHERE id = ?"
)
# The first reward stays: what was trained on must be what is served later.
SCORE = """
    UPDATE jobs SET state = 'scored', ended_at = ?, quality = ?, dimensions = ?, judge = ?,
                    flags = ?, failure = NULL, reason = NULL
    WHERE id = (SELECT job_id FROM attempts WHERE id = ?) AND state <> 'scored'
"""
END = """
    UPDATE jobs SET state = ?, ended_at = ?, failure = ?, reason = ?
    WHERE key = ? AND state = 'pending'
"""
LOSE = "UPDATE attempts SET ended_at = ?, fault = ? WHERE session_id = ? AND ended_at IS NULL"
