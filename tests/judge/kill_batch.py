"""A batch of judgements in a process that may be killed at any moment, and started again at once.

Each line on standard input, {"base_url": ..., "folder": ..., "num_rows": 300}, starts a batch in a
forked child, so that the modules are imported once; a line on standard output names the child, and
another one tells how it ended. The child submits every row to a real `JudgePool`, appends each
reward that it is handed to `handed.jsonl` and, when all have come, writes `outcomes.json`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from polaris_fast.config import JudgeConfig
from polaris_fast.judge import Backoff, JudgeJob, JudgePool
from polaris_fast.types import Scored

JOURNAL = "journal.sqlite"


def main() -> None:
    """Start a batch for each line, until standard input ends."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                run_batch(**json.loads(line))
                status = 0
            finally:
                os._exit(status)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def story_of(row: int) -> str:
    """The text of a row."""
    return f"Story {row}. " + "It was late, and nobody came. " * 20


def run_batch(base_url: str, folder: str, num_rows: int) -> None:
    """Judge all rows; what an earlier batch has in the folder's journal is not asked again."""
    config = JudgeConfig(
        base_url=base_url,
        journal=str(Path(folder) / JOURNAL),
        api_key_env="",
        retry_budget=1.0,
        hedge_budget=0.0,  # a hedge is a second call by intent
        check_at_start=False,
    )
    handed = os.open(Path(folder) / "handed.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def hand_over(row: int, outcome: object) -> None:
        os.write(handed, (json.dumps([row, as_json(outcome)]) + "\n").encode())

    with JudgePool(config, backoff=Backoff(0.001, 0.01)) as pool:
        futures = []
        for row in range(num_rows):
            future = pool.submit(JudgeJob(f"0/0/{row}", "A prompt.", story_of(row)))
            future.add_done_callback(lambda done, row=row: hand_over(row, done.result()))
            futures.append(future)
        outcomes = [as_json(future.result()) for future in futures]
    draft = Path(folder) / "outcomes.partial"
    draft.write_text(json.dumps(outcomes))
    draft.rename(Path(folder) / "outcomes.json")


def as_json(outcome: object) -> list[Any]:
    """Everything of a reward; for any other outcome, what it is."""
    if isinstance(outcome, Scored):
        return [outcome.quality, outcome.dimensions, outcome.judge, list(outcome.flags)]
    return [repr(outcome)]


if __name__ == "__main__":
    main()
