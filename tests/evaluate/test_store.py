"""Finished work on the disk: found again, and whole after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polaris_fast.evaluate.lock import sole_writer
from polaris_fast.evaluate.store import JsonLines, key_of
from polaris_fast.types import UserError


def test_what_was_kept_is_found_by_the_next_process(tmp_path):
    path = tmp_path / "deep" / "stories.jsonl"
    with JsonLines(path) as store:
        store.append("a", {"story": "half \ud800 a pair"})
        assert "a" in store and "b" not in store
    with JsonLines(path) as store:
        assert store["a"]["story"] == "half \ud800 a pair"


def test_half_a_line_of_a_killed_process_is_cut_off(tmp_path):
    path = tmp_path / "stories.jsonl"
    with JsonLines(path) as store:
        store.append("a", {"n": 1})
    with path.open("ab") as file:
        file.write(b'{"key": "b", "n"')
    with JsonLines(path) as store:
        assert "b" not in store
        store.append("c", {"n": 3})
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_the_latest_of_one_key_counts(tmp_path):
    with JsonLines(tmp_path / "s.jsonl") as store:
        store.append("a", {"n": 1})
        store.append("a", {"n": 2})
    with JsonLines(tmp_path / "s.jsonl") as store:
        assert store["a"]["n"] == 2


def test_a_foreign_file_is_named(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"no": "key"}\n')
    with pytest.raises(UserError, match=r"--out: .*s\.jsonl:1 is no line of an evaluation"):
        JsonLines(tmp_path / "s.jsonl").__enter__()


def test_looking_makes_no_file(tmp_path):
    with JsonLines(tmp_path / "new" / "s.jsonl", read_only=True) as store:
        assert "a" not in store
    assert not (tmp_path / "new").exists()


def test_looking_leaves_the_half_line_of_a_process_that_is_still_writing(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_bytes(b'{"key": "a", "n": 1}\n{"key": "b", "n"')
    kept = path.read_bytes()
    with JsonLines(path, read_only=True) as store:
        assert "a" in store and "b" not in store
    assert path.read_bytes() == kept


def test_looking_needs_no_right_to_write(tmp_path, monkeypatch):
    path = tmp_path / "s.jsonl"
    path.write_bytes(b'{"key": "a", "n": 1}\n')
    modes, whole = [], Path.open
    monkeypatch.setattr(Path, "open", lambda p, mode: modes.append(mode) or whole(p, mode))
    with JsonLines(path, read_only=True) as store:
        assert "a" in store
    assert modes == ["rb"]


def test_one_evaluation_at_a_time_writes_into_a_folder(tmp_path):
    with sole_writer(tmp_path / "out"):
        with (
            pytest.raises(UserError, match=r"--out: another evaluation is writing to .*out; wait"),
            sole_writer(tmp_path / "out"),
        ):
            pass
        with sole_writer(tmp_path / "other"):
            pass
    with sole_writer(tmp_path / "out"):
        pass


def test_keys_tell_parts_apart():
    assert key_of("a", ["b", "c"]) == key_of("a", ["b", "c"])
    assert len({key_of("a", "b"), key_of("ab"), key_of("b", "a"), key_of(["a", "b"])}) == 4
