"""Finished work on the disk: found again, and whole after a kill."""

from __future__ import annotations

import json

import pytest

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


def test_keys_tell_parts_apart():
    assert key_of("a", ["b", "c"]) == key_of("a", ["b", "c"])
    assert len({key_of("a", "b"), key_of("ab"), key_of("b", "a"), key_of(["a", "b"])}) == 4
