"""Mistakes are named before any work, and nothing half-made is ever left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polaris_fast.prepare import pipeline
from polaris_fast.prepare import settings as settings_module
from polaris_fast.prepare.__main__ import main
from polaris_fast.prepare.files import scratch_folder
from polaris_fast.prepare.prompts.journal import Kept, PromptJournal
from polaris_fast.types import UserError

from .books import prose


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "tale.txt"
    path.write_text(prose(1, 200))
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min-words", "0"], r"--min-words: must be from 1 to --max-words (12000), got 0"),
        (["--split-by", "genre"], "--split-by: 'genre' is none of author, source"),
        (["--test-counts", "1,2"], "--test-counts: '1,2' must be 3 numbers"),
        (["--test-share", "1.5"], "--test-share: must be at least 0 and below 1, got 1.5"),
        (["--duplicate-similarity", "0"], "--duplicate-similarity: must be above 0"),
        (["--workers", "0"], "--workers: must be at least 1, got 0"),
        (["--reasoning"], "--reasoning: plans are written by an endpoint"),
        (["--model", "x"], "--model: 'x' needs the --endpoint"),
        (["--endpoint", "http://h/v1"], "--model: missing"),
        (["--endpoint", "ftp://h", "--model", "m"], "--endpoint: 'ftp://h' is no http(s)"),
        (["--endpoint", "http://u:pw@h/v1", "--model", "m"], "user name, a password"),
        (["--endpoint", "http://h/v1", "--model", "m", "--max-cost", "1"], "without prices"),
        (["--endpoint", "http://h/v1", "--model", "m", "--price-input", "1"], "go together"),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy(
    book: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(book), "--out", str(tmp_path / "data"), *words]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and "u:pw" not in told
    assert not (tmp_path / "data").exists()


def test_sources_and_targets_that_cannot_be_used(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*words: str) -> str:
        assert main(list(words)) == 2
        return capsys.readouterr().err

    out = str(tmp_path / "data")
    assert "SOURCE: nowhere does not exist" in fails("nowhere", "--out", out)
    (tmp_path / "x.csv").write_text("a,b")
    assert "convert it" in fails(str(tmp_path / "x.csv"), "--out", out)
    (tmp_path / "none").mkdir()
    assert "holds no file of a known kind" in fails(str(tmp_path / "none"), "--out", out)
    assert "is not empty" in fails(str(book), "--out", str(tmp_path))
    assert "holds no DATA_CARD.md" in fails(str(book), "--out", str(tmp_path), "--overwrite")
    assert "no story is left; files read: 1, left out: 1 too short;" in fails(
        str(book), "--out", out
    )
    asked = fails(str(book), "--out", out, "--min-words", "9", "--test-counts", "1,0,0")
    assert "--test-counts: no test split" in asked


def test_a_journal_inside_out_is_refused_before_it_can_be_replaced(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    (tmp_path / "link").symlink_to(out)
    for journal in (out / "paid.sqlite", tmp_path / "link" / "a" / "paid.sqlite"):
        command = [str(book), "--out", str(out), "--journal", str(journal)]
        assert main(command) == 2
        told = capsys.readouterr().err
        assert f"--journal: {journal} lies in --out" in told and told.count("\n") == 1


def test_a_link_to_a_file_without_a_suffix_is_read_as_its_own_name_says(tmp_path: Path) -> None:
    store, books = tmp_path / "store", tmp_path / "books"
    store.mkdir()
    books.mkdir()
    (store / "0a1b2c").write_text(prose(1, 200))
    (books / "tale.txt").symlink_to(store / "0a1b2c")
    (books / "twice.txt").symlink_to(store / "0a1b2c")
    out = tmp_path / "data"
    assert main([str(books), "--out", str(out), "--min-words", "100"]) == 0
    (record,) = map(json.loads, (out / "train.jsonl").read_text().splitlines())
    assert record["source"] == "tale.txt"


def test_a_missing_library_names_the_extra(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(settings_module, "_LIBRARIES", {"no_such_module": "lxml"})
    assert main([str(book), "--out", str(tmp_path / "data")]) == 2
    assert "lxml not installed" in (told := capsys.readouterr().err) and "[train,prepare]" in told


def test_bad_files_are_told_and_the_rest_goes_on(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.epub").write_bytes(b"nothing")
    (tmp_path / "bad.txt").write_bytes(b"\0\1\2")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"story": prose(2, 200)}) + "\n{\n")
    out = tmp_path / "out" / "data"
    assert main([str(tmp_path), "--out", str(out), "--min-words", "100"]) == 0
    told = capsys.readouterr()
    assert "left out: bad.epub: no readable zip file" in told.err
    assert "left out: bad.txt: binary data" in told.err
    assert "left out: rows.jsonl:2: not valid JSON" in told.err
    assert "left out: 3 unreadable" in told.out


def test_a_source_that_vanishes_is_told_and_the_rest_goes_on(
    book: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = pipeline.find_files

    def then_gone(settings):
        files, others = found(settings)
        return [*files, (tmp_path / "gone.txt", "gone.txt")], others

    monkeypatch.setattr(pipeline, "find_files", then_gone)
    assert main([str(book), "--out", str(tmp_path / "data"), "--min-words", "100"]) == 0
    assert "left out: gone.txt: " in capsys.readouterr().err


def test_files_of_other_kinds_are_named_at_the_end(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.pdf", "b.PDF", "c.mobi", "README"):
        (tmp_path / name).write_bytes(b"x")
    out = tmp_path / "out" / "data"
    assert main([str(tmp_path), "--out", str(out), "--min-words", "100"]) == 0
    assert "not read: 2 .pdf, 1 .mobi, 1 without a suffix; convert" in capsys.readouterr().out
    assert "2 .pdf, 1 .mobi" in (out / "DATA_CARD.md").read_text()


def test_an_error_names_its_own_file_and_not_out(tmp_path: Path) -> None:
    out = tmp_path / "data"
    with pytest.raises(UserError, match=r"elsewhere: No such file.*; nothing was changed"):
        with scratch_folder(out):
            (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(UserError, match=r"--out: .*data cannot be written"):
        with scratch_folder(out) as scratch:
            (scratch / "missing").read_bytes()
    journal = PromptJournal(tmp_path / "paid.sqlite")
    journal.close()
    with pytest.raises(UserError, match=r"--journal: .*paid.sqlite cannot be read or written"):
        with scratch_folder(out):
            journal.put("key", Kept("answer"))


def test_a_given_prompt_that_leaks_is_replaced(tmp_path: Path) -> None:
    story = prose(3, 200)
    row = {"story": story, "prompt": "Begin: " + " ".join(story.split()[:12])}
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "data"
    assert main([str(tmp_path / "r.jsonl"), "--out", str(out), "--min-words", "100"]) == 0
    (record,) = map(json.loads, (out / "train.jsonl").read_text().splitlines())
    assert record["prompt_from"] == "extractive" and row["prompt"] != record["prompt"]
    assert "1 given prompts leaked their story" in (out / "DATA_CARD.md").read_text()


def test_a_given_prompt_names_no_length_beside_the_storys_own(tmp_path: Path) -> None:
    rows = [
        {"story": prose(3, 200), "prompt": "Write a 4,000-word story about a ferry."},
        {"story": prose(4, 200), "prompt": "Write a story, 4,000 words long."},
        {"story": prose(5, 200), "prompt": "Tell of a well.", "target_word_count": 4000},
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "data"
    assert main([str(tmp_path / "r.jsonl"), "--out", str(out), "--min-words", "100"]) == 0
    records = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    first, second, third = records
    assert first["prompt"] == "Write a story about a ferry."
    assert second["prompt_from"] == "extractive"
    assert third["prompt"] == "Tell of a well."
    assert all(r["target_word_count"] == len(r["story"].split()) for r in records)
    assert "2 given prompts named a length" in (out / "DATA_CARD.md").read_text()


def test_many_copies_of_one_text_cost_no_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 60 copies, a near-copy that is longer and a stranger, two texts stay."""
    compared: list[tuple[int, int]] = []
    compare = pipeline.compare

    def counting(candidates, grams):
        compared.extend(candidates)
        return compare(compared, grams)

    monkeypatch.setattr(pipeline, "compare", counting)
    texts = [prose(1, 200)] * 60 + [prose(1, 200) + " The end came.", prose(2, 200)]
    rows = "\n".join(json.dumps({"story": text}) for text in texts)
    (tmp_path / "r.jsonl").write_text(rows)
    out = tmp_path / "data"
    assert main([str(tmp_path / "r.jsonl"), "--out", str(out), "--min-words", "100"]) == 0
    records = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert [record["story"] for record in records] == texts[60:]
    assert "left out: 60 near-duplicate" in capsys.readouterr().out
    assert compared == [(0, 60)]
    assert "r.jsonl:61" in (out / "DATA_CARD.md").read_text().split("| left out | kept |")[1]


def test_an_overwritten_set_is_replaced_whole(book: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    command = [str(book), "--out", str(out), "--min-words", "100"]
    assert main(command) == 0
    (out / "stray.txt").write_text("of the old one")
    assert main([*command, "--overwrite", "--format", "parquet"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["DATA_CARD.md", "train.parquet"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, sign: signal.Signals) -> None:
    """Worker processes included: the corpus is large enough for them to be used."""
    books = tmp_path / "books"
    books.mkdir()
    text = prose(1, 20_000)
    for i in range(40):
        (books / f"t{i}.txt").write_text(f"{i} {text}")
    command = [sys.executable, "-m", "polaris_fast.prepare", str(books), "--out",
               str(tmp_path / "data"), "--max-words", "90000", "--workers", "2"]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=dict(os.environ), start_new_session=True
    )
    limit = time.monotonic() + 60
    while not list(tmp_path.glob(".data.partial-*/stage.sqlite")) and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(0.5)
    (os.killpg if sign is signal.SIGINT else os.kill)(process.pid, sign)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and told.splitlines()[-1].startswith("stopped;")
    assert "Traceback" not in told
    assert [p.name for p in tmp_path.iterdir()] == ["books"]


def test_workers_give_what_one_process_gives(tmp_path: Path, monkeypatch) -> None:
    from polaris_fast.prepare import reading

    monkeypatch.setattr(reading, "SMALL_BYTES", 0)
    for i in range(12):
        (tmp_path / f"t{i:02}.txt").write_text(prose(i, 150))
    made = []
    for workers in ("1", "2"):
        out = tmp_path / f"out{workers}"
        command = [str(tmp_path), "--out", str(out), "--min-words", "100"]
        assert main([*command, "--workers", workers]) == 0
        made.append((out / "train.jsonl").read_bytes() + (out / "test.jsonl").read_bytes())
        for path in out.iterdir():
            path.rename(tmp_path / f"{path.name}.{workers}.kept")
        out.rmdir()
    assert made[0] == made[1]
