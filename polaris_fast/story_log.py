"""The texts of a run: `stories/step-000001.jsonl`, one object a row, read by the report."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .types import Failed, Rejected, Row, Scored


def row_to_dict(row: Row) -> dict[str, Any]:
    """What a person wants to know of a row; token ids stay out."""
    outcome = row.outcome
    scored = outcome if isinstance(outcome, Scored) else None
    reason = outcome.reason if isinstance(outcome, Failed | Rejected) else None
    return {
        "row_id": row.row_id,
        "group": row.group,
        "slot": row.slot,
        "kind": row.kind.value,
        "uid": row.record.uid,
        "prompt": row.record.prompt,
        "target_word_count": row.record.target_word_count,
        "thinking": row.thinking,
        "story": row.story,
        "finish_reason": row.finish_reason.value if row.finish_reason else None,
        "num_tokens": len(row.completion_ids),
        "versions": [[span.version, span.start, span.end] for span in row.versions],
        "outcome": type(outcome).__name__.lower() if outcome else None,
        "reason": reason,
        "quality": scored.quality if scored else None,
        "dimensions": scored.dimensions if scored else {},
        "reward": asdict(row.reward) if row.reward else None,
        "advantage": row.advantage,
        "trained": row.trained,
    }


def write_stories(run_dir: Path, step: int, rows: Iterable[Row]) -> None:
    """Write the rows of optimizer step `step` (from 1), replacing what a killed run left."""
    path = run_dir / "stories" / f"step-{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".partial")
    # a sampled text may hold half of a surrogate pair, which UTF-8 cannot say
    with draft.open("w", encoding="utf-8", errors="replace") as file:
        for row in rows:
            file.write(json.dumps(row_to_dict(row), ensure_ascii=False) + "\n")
    draft.replace(path)


def drop_stories_after(run_dir: Path, step: int) -> None:
    """Forget the texts of steps that a resumed run will do again."""
    for path in (run_dir / "stories").glob("step-*.jsonl"):
        number = path.stem.removeprefix("step-")  # no number: a person's copy
        if number.isdecimal() and int(number) > step:
            path.unlink()
