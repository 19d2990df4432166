"""The whole command on a made-up anthology, to the records that training reads."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from polaris_fast.cli import main as polaris
from polaris_fast.config import DataConfig
from polaris_fast.data import load_records, split_records
from polaris_fast.prepare.__main__ import main
from polaris_fast.prepare.prompts.leak import find_leak

from .books import Part, prose, sample_texts, write_epub

AUTHORS = ("Ann Lee", "B. K. Moss", "Cora van Dyke", "Dan O'Neill", "Ella Fitz", "Finn St. John")
TITLES = ("The Bottle", "Flat F", "Tomatoes", "The Goose", "Thaw", "Three Knocks")
PREFACE = "I have gathered these six stories over many winters. " * 8


def near_copy(text: str, seed: int) -> str:
    """Every fortieth word changed: another printing."""
    words, rng = text.split(" "), random.Random(seed)
    for i in range(0, len(words), 40):
        words[i] = rng.choice(("altered", "amended", "mended"))
    return " ".join(words)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with one anthology: six stories, two near-duplicates, a preface."""
    folder = tmp_path / "books"
    folder.mkdir()
    stories = sample_texts(6)
    copy = near_copy(stories[0], 1).rpartition(" ")[0]  # shorter by a word: the other one stays
    parts = [
        Part("Cover", "A Shelf of Stories", roles="cover"),
        Part("", "Copyright 2020. All rights reserved. ISBN 978-0-00", heading=""),
        Part("Preface", PREFACE),
        *(Part(f"{t} / {a}", s, heading=t, byline=f"by {a}")
          for t, a, s in zip(TITLES, AUTHORS, stories, strict=True)),
        Part("The Bottle, again / Ann Lee", copy, heading="The Bottle, again"),
        Part("An Excerpt / Dan O'Neill", "\n\n".join(stories[3].split("\n\n")[:-1])),
        Part("About the Authors", "They write. " * 40),
    ]  # fmt: skip
    creators = [(name, "aut") for name in AUTHORS] + [("Ed Itor", "edt")]
    write_epub(folder / "shelf.epub", parts, creators=creators)
    return folder


def records_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_anthology_becomes_six_stories_by_their_authors(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    assert main([str(shelf), "--out", str(out), "--min-words", "100", "--report"]) == 0
    records = records_of(out / "train.jsonl")
    assert {r["title"]: r["author"] for r in records} == dict(zip(TITLES, AUTHORS, strict=True))
    for record, story in zip(records, sample_texts(6), strict=True):
        assert record["story"] == story
        assert record["target_word_count"] == len(story.split())
        assert find_leak(record["prompt"], record["story"]) is None
        assert record["source"] == "A Shelf of Stories"
    card = (out / "DATA_CARD.md").read_text()
    assert "| near-duplicate | 2 |" in card
    for reason in ('title is "Preface"', "marked as cover", "copyright page", "About the Authors"):
        assert reason in card
    told = capsys.readouterr()
    assert "no test split: 6 of 6 stories are tied by author and source" in told.err
    assert "--split-by author" in told.err
    assert not (out / "test.jsonl").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["books", "data"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_training_reads_what_was_made(shelf: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "data"
    command = [str(shelf), "--out", str(out), "--min-words", "100", "--format", form]
    assert main([*command, "--split-by", "author", "--test-share", "0.2"]) == 0
    train, test = str(out / f"train.{form}"), str(out / f"test.{form}")
    config = DataConfig(path=train, eval_path=test)
    kept, held_out = split_records(config, load_records(config))
    assert (len(kept), len(held_out)) == (5, 1)
    authors = [{r.columns["author"] for r in records} for records in (kept, held_out)]
    assert authors[0].isdisjoint(authors[1]) and authors[0] | authors[1] == set(AUTHORS)


def test_books_become_records_a_trained_model_and_a_table(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way by the commands alone, on what each of them left for the next."""
    data, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "evaluation"
    by_author = ["--split-by", "author", "--test-share", "0.2"]
    assert (
        polaris(["prepare", str(shelf), "--out", str(data), "--min-words", "100", *by_author]) == 0
    )
    train, test = data / "train.jsonl", data / "test.jsonl"
    records, held_out = records_of(train), records_of(test)
    assert {r["title"]: r["author"] for r in records + held_out} == dict(
        zip(TITLES, AUTHORS, strict=True)
    )
    assert {r["author"] for r in records}.isdisjoint(r["author"] for r in held_out)
    assert "5 stories to train on, 1 to test with, from 1 file" in capsys.readouterr().out

    status = polaris(
        ["train", "--config", "debug", "--data.path", str(train), "--data.eval_path", str(test),
         "--output_dir", str(run), "--max_steps", "2", "--prompts_per_step", "1",
         "--num_generations", "4", "--max_completion_length", "420", "--progress", "false",
         "--data.max_target_words", "null", "--embedded.warm_start_steps", "2"]
    )  # fmt: skip
    assert status == 0
    assert [row["step"] for row in records_of(run / "metrics.jsonl")] == [1, 2]
    told = {row["uid"] for row in records_of(run / "stories" / "step-000001.jsonl")}
    assert told < {r["uid"] for r in records}

    models = ["evaluate", "--model", str(run / "base"), "--model", str(run), "--out", str(out)]
    assert polaris([*models, "--data", str(test), "--samples", "2"]) == 0
    shown = capsys.readouterr()
    for line in ("Story Quality by words asked for", "Length ratio by words", "Self-BLEU (-)",
                 "8-grams of training stories", "checkpoint-2"):  # fmt: skip
        assert line in shown.out, line
    assert "are training prompts" not in shown.err
    found = json.loads((out / "evaluation.json").read_text())
    assert found["buckets"] == [str(held_out[0]["target_word_count"])]
    assert [m["num_stories"] for m in found["models"]] == [2, 2]
    assert polaris([*models, "--data", str(train), "--dry-run"]) == 0
    assert f"5 of the 5 prompts of {train} are training prompts" in capsys.readouterr().err


def test_the_same_books_give_the_same_bytes_whatever_their_order(tmp_path: Path) -> None:
    parts = [Part(f"Tale {name}", prose(i, 150)) for i, name in enumerate(("Ash", "Birch", "Elm"))]
    results = []
    for folder, names in (("one", ("a", "b", "c")), ("two", ("c", "a", "b"))):
        (tmp_path / folder).mkdir()
        for name, part in zip(names, parts, strict=True):
            text = f"---\nauthor: {part.title[5:]} Smith\n---\n# {part.title}\n\n{part.text}\n"
            (tmp_path / folder / f"{name}.md").write_text(text)
        out = tmp_path / f"out-{folder}"
        command = [str(tmp_path / folder), "--out", str(out), "--min-words", "100"]
        assert main([*command, "--test-share", "0.34"]) == 0
        results.append({r["uid"] for r in records_of(out / "test.jsonl")})
    assert results[0] == results[1] and len(results[0]) == 1
