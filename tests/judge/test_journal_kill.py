"""`kill -9` at any moment of a batch: the same rewards, and nothing that was kept is paid again."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kill_batch
from aiohttp import web

from benchmarks.scripted_endpoint import (
    Behaviour,
    ScriptedServer,
    answer_tree,
    body,
    completion,
    missing_dimension,
    slow,
    status,
)
from polaris_fast.judge.journal import Journal

NUM_ROWS, NUM_KILLS = 300, 20
FAULTS = (status(500), status(429, headers={"retry-after-ms": "2"}), missing_dimension())


class PaidCalls:
    """The endpoint's side: a reward by story, and how many calls for it had to be paid.

    The model's name tells the number of the call, so that a second answer to one story shows.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.requests: Counter[str] = Counter()  # whatever came, faults too
        self.judgements: Counter[str] = Counter()  # answers worked out: paid, seen or not

    def __call__(self, story: str) -> Iterator[Behaviour]:
        rng = random.Random(f"{self.seed} {story}")
        points = rng.randrange(101)
        if rng.random() < 0.2:
            yield self._counted(story, rng.choice(FAULTS))
        for _ in range(1 + NUM_KILLS):
            yield self._judge(story, points, delay_s=rng.uniform(0.005, 0.04))

    def _counted(self, story: str, behaviour: Behaviour) -> Behaviour:
        async def behave(request: web.Request) -> web.StreamResponse:
            self.requests[story] += 1
            return await behaviour(request)

        return behave

    def _judge(self, story: str, points: float, delay_s: float) -> Behaviour:
        async def behave(request: web.Request) -> web.StreamResponse:
            self.judgements[story] += 1
            tree = completion(json.dumps(answer_tree(points)))
            tree["model"] = f"call {self.judgements[story]}"
            return await slow(delay_s, body(tree))(request)

        return self._counted(story, behave)


class Batches:
    """Starts batches in a process of their own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, kill_batch.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, base_url: str, folder: Path) -> int:
        """Start or go on with the batch of a folder; the number of its process."""
        settings = {"base_url": base_url, "folder": str(folder), "num_rows": NUM_ROWS}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(settings) + "\n")
        self._process.stdin.flush()
        return self._line()

    def wait(self) -> int:
        """Exit status of the batch; negative: the signal that ended it."""
        return self._line()

    def _line(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process of the batches has died"
        return int(line)

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()


def outcomes_in(folder: Path) -> list[Any]:
    """The rewards of a batch that came to its end."""
    return json.loads((folder / "outcomes.json").read_text())


def handed_in(folder: Path) -> list[tuple[int, Any]]:
    """Every reward that any of a folder's batches was handed, those of killed ones too."""
    lines = (folder / "handed.jsonl").read_text().split("\n")[:-1]
    return [tuple(json.loads(line)) for line in lines]


def attempts_by_story(journal: Path) -> dict[int, Counter[str]]:
    """Row -> attempts by how they ended."""
    connection = sqlite3.connect(journal)
    query = "SELECT row_id, fault FROM attempts JOIN jobs ON jobs.id = job_id"
    found: dict[int, Counter[str]] = {row: Counter() for row in range(NUM_ROWS)}
    for row_id, fault in connection.execute(query):
        found[int(row_id.rpartition("/")[2])][fault or "answered"] += 1
    connection.close()
    return found


def run_undisturbed(batches: Batches, calls: PaidCalls, folder: Path) -> None:
    folder.mkdir()
    with ScriptedServer(calls) as server:
        batches.start(server.base_url, folder)
        assert batches.wait() == 0
    assert set(calls.judgements.values()) == {1} and len(calls.judgements) == NUM_ROWS


def run_killed(batches: Batches, calls: PaidCalls, folder: Path) -> None:
    """Kill and start again, each time after a few more stories were worked on."""
    folder.mkdir()
    rng = random.Random(2)
    moments = sorted(rng.sample(range(1, NUM_ROWS), NUM_KILLS))
    with ScriptedServer(calls) as server:
        for moment in moments:
            pid = batches.start(server.base_url, folder)
            while len(calls.judgements) < moment:
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.01))
            os.kill(pid, signal.SIGKILL)
            assert batches.wait() == -signal.SIGKILL
        batches.start(server.base_url, folder)
        assert batches.wait() == 0


def test_a_batch_that_is_killed_twenty_times_ends_like_one_that_was_not(tmp_path: Path) -> None:
    calls = PaidCalls(seed=1)
    with Batches() as batches:
        run_undisturbed(batches, PaidCalls(seed=1), tmp_path / "calm")
        run_killed(batches, calls, tmp_path / "killed")
    journal_file = tmp_path / "killed" / kill_batch.JOURNAL
    outcomes = outcomes_in(tmp_path / "killed")

    # The same rewards; and a reward that was handed out once is handed out ever after.
    assert [o[:2] for o in outcomes] == [o[:2] for o in outcomes_in(tmp_path / "calm")]
    assert all(outcome == outcomes[row] for row, outcome in handed_in(tmp_path / "killed"))

    attempts = attempts_by_story(journal_file)
    repeated = num_lost = 0
    for row, ended in attempts.items():
        story = kill_batch.story_of(row)
        lost = ended["lost"]
        assert ended["answered"] == 1
        # Every call is in the journal, and only a lost answer was paid for again.
        assert ended.total() - lost <= calls.requests[story] <= ended.total()
        assert calls.judgements[story] - 1 <= lost
        repeated += calls.judgements[story] - 1
        num_lost += lost
    assert 0 < repeated <= num_lost
    with Journal(journal_file) as journal:
        assert journal.lost_attempts() == num_lost
    never_sent = sum(ended.total() for ended in attempts.values()) - calls.requests.total()
    print(
        f"{NUM_KILLS} kills, {NUM_ROWS} rows: {calls.judgements.total()} paid calls, {num_lost} "
        f"attempts lost, {repeated} of them paid for again, {never_sent} never sent"
    )
