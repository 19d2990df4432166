"""Every file that cannot be a journal is refused before a call, by setting, value and remedy."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from polaris_fast.config_file import load_config
from polaris_fast.judge import JudgeJob
from polaris_fast.judge.journal import AttemptRecord, Journal, JournalError, journal_path, schema
from polaris_fast.judge.journal import file as journal_file
from polaris_fast.judge.journal import reserve as reserve_module
from polaris_fast.judge.journal.mounts import network_kind
from polaris_fast.judge.journal.process import is_alive, process_token
from polaris_fast.types import Failed, Scored

JOB = JudgeJob("0/0/0", "p", "A story.")
TEXT = "x" * 20_000


def refusal(path: Path) -> str:
    """The one line that opening `path` ends with."""
    with pytest.raises(JournalError) as caught:
        Journal(path).open()
    message = str(caught.value)
    assert message.startswith(f"judge.journal: {path}: ") and "\n" not in message
    return message


def score(journal: Journal, key: str) -> None:
    journal.begin(key, job=JOB, sample=0, judge_id="j", model="m")
    attempt = journal.begin_attempt(key, number=1)
    journal.end_attempt(attempt, AttemptRecord(status=200, text=TEXT), Scored(0.5))


# what cannot be opened -------------------------------------------------------------------------


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database " * 100)
    message = refusal(path)
    assert "no SQLite file" in message and "move the file away" in message
    assert path.read_text() == "not a database " * 100


def test_a_folder(tmp_path: Path) -> None:
    assert "it is a folder" in refusal(tmp_path)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        for i in range(200):
            score(journal, f"key {i:060}")
    content = bytearray(path.read_bytes())
    page = content.index(b"key 0000")  # a page of the jobs
    content[page - page % 4096 : page - page % 4096 + 100] = b"\xff" * 100
    path.write_bytes(content)
    assert "it is damaged" in refusal(path)


def test_another_programs_database(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    assert "another program's SQLite file" in refusal(path)


def test_a_later_versions_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    Journal(path).open().close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    message = refusal(path)
    assert "schema version 99" in message and "upgrade polaris_fast" in message


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "nothing can be written in" in refusal(tmp_path / "file" / "journal.sqlite")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "make the folder writable" in refusal(tmp_path / "journal.sqlite")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.sqlite"
    Journal(path).open().close()
    real = sqlite3.connect

    def read_only(name: str, **options: object) -> sqlite3.Connection:
        return real(f"file:{name}?mode=ro", uri=True, **options)

    monkeypatch.setattr(journal_file.sqlite3, "connect", read_only)
    message = refusal(path)
    assert "cannot be written" in message and "make it writable" in message


def test_no_room_for_the_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, size_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reserve_module, "_allocate", full)
    message = refusal(tmp_path / "journal.sqlite")
    assert "has no room for 8 MiB" in message and "free some space" in message


def test_a_locked_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.sqlite"
    Journal(path).open().close()
    monkeypatch.setattr(journal_file, "BUSY_TIMEOUT_S", 0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert "another process keeps it locked" in refusal(path)
    holder.close()


def test_a_file_that_another_run_is_making_is_waited_for(tmp_path: Path) -> None:
    """SQLite's busy timeout does not cover the change to WAL: it fails there at once."""
    path = tmp_path / "journal.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    impatient = sqlite3.connect(path, isolation_level=None, timeout=10)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        impatient.execute("PRAGMA journal_mode = WAL")
    impatient.close()
    release = threading.Timer(0.1, other.rollback)
    release.start()
    Journal(path).open().close()
    release.join()
    other.close()


# file systems ----------------------------------------------------------------------------------

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /data rw - nfs4 server:/export rw
31 30 0:41 / /data/scratch rw shared:7 master:3 - xfs /dev/vdb rw
32 22 0:42 / /mnt/my\\040share rw - cifs //server/share rw
33 22 0:43 / /over rw - nfs server:/a rw
34 33 0:44 / /over rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/journal.sqlite", None),
        ("/data/runs/journal.sqlite", "nfs4"),
        ("/database/journal.sqlite", None),
        ("/data/scratch/journal.sqlite", None),
        ("/mnt/my share/journal.sqlite", "cifs"),
        ("/over/journal.sqlite", None),
    ],
)
def test_network_mounts_are_told_apart(path: str, kind: str | None) -> None:
    assert network_kind(Path(path), MOUNTS) == kind


def test_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_file.mounts, "network_kind", lambda path: "nfs4")
    message = refusal(tmp_path / "journal.sqlite")
    assert "network file system (nfs4)" in message and "local disk" in message
    assert not (tmp_path / "journal.sqlite").exists()


def test_a_file_system_without_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sqlite3.connect

    class WithoutWal(sqlite3.Connection):
        def execute(self, query: str, *parameters: object) -> sqlite3.Cursor:
            return super().execute(query.replace("= WAL", "= DELETE"), *parameters)

    monkeypatch.setattr(
        journal_file.sqlite3, "connect", lambda name, **kw: real(name, factory=WithoutWal, **kw)
    )
    assert "no shared memory" in refusal(tmp_path / "journal.sqlite")


# migrations ------------------------------------------------------------------------------------


def test_an_earlier_versions_journal_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        score(journal, "old")
    later = (*schema.MIGRATIONS, ("ALTER TABLE jobs ADD COLUMN tier TEXT DEFAULT 'batch'",))
    monkeypatch.setattr(schema, "MIGRATIONS", later)
    with Journal(path) as journal:
        assert journal.lookup("old") == Scored(0.5)
        with journal._reading() as connection:
            assert connection.execute("SELECT tier FROM jobs").fetchall() == [("batch",)]
            assert schema.version_of(connection) == len(later)


def test_a_migration_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        score(journal, "old")
    broken = ("ALTER TABLE jobs ADD COLUMN tier TEXT", "ALTER TABLE nowhere ADD COLUMN x")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        assert "SQLite refuses it" in refusal(path)
    with Journal(path) as journal:
        assert journal.lookup("old") == Scored(0.5)


# a disk that fills up in mid-run ---------------------------------------------------------------


def limit_pages(journal: Journal, extra: int | None) -> None:
    """Let the file grow by `extra` pages and no more; None: as it likes."""
    with journal._reading() as connection:
        now = connection.execute("PRAGMA page_count").fetchone()[0]
        limit = 2**30 if extra is None else now + extra
        connection.execute(f"PRAGMA max_page_count = {limit}")


def test_a_full_disk_stops_payment_and_the_reserve_keeps_what_was_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        attempts = []
        for i in range(8):  # sent, and being answered while the disk fills up
            journal.begin(f"{i}", job=JOB, sample=0, judge_id="j", model="m")
            attempts.append(journal.begin_attempt(f"{i}", number=1))
        assert journal._reserve is not None
        release = journal._reserve.release

        def give_up() -> bool:
            limit_pages(journal, None)
            return release()

        limit_pages(journal, 0)
        record = AttemptRecord(status=200, text=TEXT)
        with monkeypatch.context() as patch:
            patch.setattr(journal._reserve, "release", give_up)
            for i, attempt in enumerate(attempts):
                journal.end_attempt(attempt, record, Scored(i / 10))
        assert journal.fault is not None and "its disk is full" in str(journal.fault)
        for call in (
            lambda: journal.begin("new", job=JOB, sample=0, judge_id="j", model="m"),
            lambda: journal.begin_attempt("0", number=2),
        ):
            with pytest.raises(JournalError, match="resume_from_checkpoint"):
                call()
    with Journal(path) as journal:
        assert [journal.lookup(f"{i}") for i in range(8)] == [Scored(i / 10) for i in range(8)]
        assert journal.lost_attempts() == 0


def test_a_full_disk_without_a_reserve_is_told_and_leaves_a_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        score(journal, "before")
        journal.begin("k", job=JOB, sample=0, judge_id="j", model="m")
        attempt = journal.begin_attempt("k", number=1)
        assert journal._reserve is not None and journal._reserve.release()
        limit_pages(journal, 0)
        with pytest.raises(JournalError, match="its disk is full"):
            journal.end_attempt(attempt, AttemptRecord(text=TEXT), Scored(0.5))
        journal.end("k", Failed("the disk is full"))  # says nothing more: the fault is known
        limit_pages(journal, None)
    with Journal(path) as journal:
        assert journal.lookup("before") == Scored(0.5)
        assert journal.lookup("k") is None
        assert journal.lost_attempts() == 1


# paths and processes ---------------------------------------------------------------------------


def test_where_the_journal_is(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    assert journal_path(None, run) == (tmp_path / "runs" / "judge_journal.sqlite").resolve()
    assert load_config(None, {"judge.journal": "off"}).judge.journal == "off"
    assert journal_path(None, None) is journal_path("off", run) is journal_path("off", None) is None
    assert journal_path("~/j.sqlite", None) == (Path.home() / "j.sqlite").resolve()


def test_a_killed_process_is_told_from_a_running_one() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    token = process_token(child.pid)
    assert is_alive(token) and is_alive(process_token(os.getpid()))
    child.kill()
    while is_alive(token):  # a killed process that nobody has waited for does not count
        time.sleep(0.001)
    child.communicate()
    assert not is_alive(token)
    assert not is_alive(f"{os.getpid()} another boot's process of the same number")
    assert not is_alive("")
