"""No order of begins, requests, ends and kills loses a reward or counts a request wrong."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from polaris_fast.judge import JudgeJob
from polaris_fast.judge.journal import AttemptRecord, Journal, Purpose
from polaris_fast.types import Failed, Rejected, Scored

JOB = JudgeJob("0/0/0", "p", "A story.")
KEYS = st.sampled_from(["a", "b", "c"])
WRITERS = st.sampled_from([0, 1])


class JournalMachine(RuleBasedStateMachine):
    """Two processes on one file, and what the file must say: rewards, and requests by their end.

    A kill is a connection that is dropped without a word: what it had committed stays.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name) / "journal.sqlite"
        self.num_processes = 0
        self.living: set[str] = set()
        self.begun: set[str] = set()
        self.rewards: dict[str, Scored] = {}
        self.awaited: dict[int, tuple[int, str]] = {}  # attempt -> writer, key
        self.num_ended = self.num_lost = self.num_awaited_by_dead = 0
        self.journals = [self._start() for _ in range(2)]

    def _start(self) -> Journal:
        journal = Journal(self.path, is_alive=lambda token: token in self.living)
        journal.open()
        self.num_lost += self.num_awaited_by_dead
        assert journal.num_lost_found == self.num_awaited_by_dead
        self.num_awaited_by_dead = 0
        self.num_processes += 1
        name = f"process {self.num_processes}"
        with journal._transaction() as connection:  # both run in this one process: tell them apart
            row = (name, journal._session)
            connection.execute("UPDATE sessions SET process = ? WHERE id = ?", row)
        self.living.add(name)
        journal.name = name  # type: ignore[attr-defined]
        return journal

    def _drop(self, writer: int) -> int:
        """Forget what a process had under way; how many answers that were."""
        gone = [attempt for attempt, (owner, _) in self.awaited.items() if owner == writer]
        for attempt in gone:
            del self.awaited[attempt]
        self.living.discard(self.journals[writer].name)  # type: ignore[attr-defined]
        return len(gone)

    @rule(writer=WRITERS, key=KEYS)
    def begin(self, writer: int, key: str) -> None:
        self.journals[writer].begin(key, job=JOB, sample=0, judge_id="j", model="m")
        self.begun.add(key)

    @precondition(lambda self: self.begun)
    @rule(writer=WRITERS, purpose=st.sampled_from(list(Purpose)), data=st.data())
    def send(self, writer: int, purpose: Purpose, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.begun)))
        attempt = self.journals[writer].begin_attempt(key, number=1, purpose=purpose)
        self.awaited[attempt] = writer, key

    @precondition(lambda self: self.awaited)
    @rule(data=st.data(), quality=st.none() | st.floats(-2, 2))
    def answer(self, data: st.DataObject, quality: float | None) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.awaited)))
        writer, key = self.awaited.pop(attempt)
        if quality is None:
            self.journals[writer].end_attempt(attempt, AttemptRecord(fault="transient"))
        else:
            scored = Scored(quality, {"P1": quality / 3}, "m", ("flag",))
            self.journals[writer].end_attempt(attempt, AttemptRecord(status=200), scored)
            self.rewards.setdefault(key, scored)
        self.num_ended += 1

    @rule(writer=WRITERS, key=KEYS, refused=st.booleans())
    def give_up(self, writer: int, key: str, refused: bool) -> None:
        self.journals[writer].end(key, Rejected("no") if refused else Failed("no"))

    @rule(writer=WRITERS)
    def kill(self, writer: int) -> None:
        self.num_awaited_by_dead += self._drop(writer)
        journal = self.journals[writer]
        assert journal._connection is not None
        journal._connection.close()
        journal._connection = None
        journal._shut()
        self.journals[writer] = self._start()

    @rule(writer=WRITERS)
    def close(self, writer: int) -> None:
        self.num_lost += self._drop(writer)
        self.journals[writer].close()
        self.journals[writer] = self._start()

    @invariant()
    def rewards_are_served_and_nothing_else(self) -> None:
        for journal in self.journals:
            for key in ("a", "b", "c"):
                assert journal.lookup(key) == self.rewards.get(key)

    @invariant()
    def every_request_is_ended_awaited_or_lost(self) -> None:
        with self.journals[0]._reading() as connection:
            query = "SELECT count(*), sum(ended_at IS NULL) FROM attempts"
            total, num_open = connection.execute(query).fetchone()
        lost = self.journals[1].lost_attempts()
        assert lost == self.num_lost
        assert (num_open or 0) == len(self.awaited)
        assert total == self.num_ended + len(self.awaited) + lost

    def teardown(self) -> None:
        for journal in self.journals:
            journal.close()
        self._folder.cleanup()


TestJournalStates = JournalMachine.TestCase
TestJournalStates.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, derandomize=True, database=None
)
