"""Rows that were written ahead, beside a checkpoint: a resumed run trains them as they were."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .rollout import Completion
from .types import FinishReason, Row, VersionSpan

_FILE = "in_flight.jsonl"


def write_rows(checkpoint: Path, rows: Sequence[Row]) -> None:
    """Write what the rollout engine gave for these rows; numbers are kept bit for bit."""
    with (checkpoint / _FILE).open("w") as file:
        for row in rows:
            file.write(json.dumps(_to_dict(row)) + "\n")


def read_rows(checkpoint: Path) -> dict[str, Completion]:
    """Completions by row id; none where the run did not write ahead."""
    path = checkpoint / _FILE
    if not path.exists():
        return {}
    stored = [json.loads(line) for line in path.read_text().splitlines()]
    return {entry["row_id"]: _completion(entry) for entry in stored}


def _to_dict(row: Row) -> dict[str, Any]:
    assert row.finish_reason is not None
    return {
        "row_id": row.row_id,
        "completion_ids": row.completion_ids,
        "rollout_logps": row.rollout_logps,
        "sampler_logps": row.sampler_logps,
        "finish_reason": row.finish_reason.value,
        "versions": [[span.version, span.start, span.end] for span in row.versions],
    }


def _completion(entry: dict[str, Any]) -> Completion:
    return Completion(
        completion_ids=entry["completion_ids"],
        rollout_logps=entry["rollout_logps"],
        sampler_logps=entry["sampler_logps"],
        finish_reason=FinishReason(entry["finish_reason"]),
        versions=tuple(VersionSpan(*span) for span in entry["versions"]),
    )
