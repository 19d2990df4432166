"""The whole way on tiny models: write, judge, measure, print; go on after a stop; name mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import polaris_fast
from polaris_fast.cli import main
from polaris_fast.evaluate import command, writing
from polaris_fast.evaluate.lock import sole_writer
from polaris_fast.stopping import StopRequested

from .judge_double import judge_double

SHORT = (
    "--words",
    "20,40",
    "--num-prompts",
    "3",
    "--samples",
    "2",
    "--max_completion_length",
    "40",
)

STORIES = ("--train-data", str(Path(polaris_fast.__file__).parent / "samples" / "micro.jsonl"))


def evaluate(models, out: Path, *arguments: str) -> int:
    named = [word for model in models for word in ("--model", str(model))]
    return main(["evaluate", *named, "--out", str(out), *SHORT, *arguments])


def result_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "evaluation.json").read_text())


def no_engine(*_: Any) -> Any:
    raise AssertionError("nothing is to be written")


def test_an_evaluation_from_end_to_end(tiny_models, tmp_path, capsys, monkeypatch):
    attack = ("--memorisation", "2", "--prefix-words", "5", "--verbatim", "5", *STORIES)
    assert evaluate(tiny_models, tmp_path, "--pairwise", *attack) == 0
    out, err = capsys.readouterr()
    assert "Story Quality by words asked for" in out and "Elo" in out and "Memorisation" in out
    assert "one: 12 stories, 0 of them written before" in err

    found = result_of(tmp_path)
    assert [m["name"] for m in found["models"]] == ["one", "two"]
    assert found["buckets"] == ["20", "40"]
    lines = [json.loads(s) for s in (tmp_path / "measures.jsonl").read_text().splitlines()]
    assert len(lines) == 24
    for model in found["models"]:
        own = [line for line in lines if line["model"] == model["name"]]
        by_prompt: dict[str, list[float]] = {}
        for line in own:
            by_prompt.setdefault(line["uid"], []).append(line["abs_log_ratio"])
        means = [sum(v) / len(v) for v in by_prompt.values()]
        interval = model["measures"]["abs_log_ratio"]["all"]
        assert interval["estimate"] == pytest.approx(sum(means) / 3)
        assert interval["low"] <= interval["estimate"] <= interval["high"]
        assert model["measures"]["quality"]["slope"] is not None
    assert found["models"][0]["measures"]["quality"]["gain"] is None
    assert set(found["memorisation"]) == {"one", "two"}

    page = (tmp_path / "evaluation.html").read_text()
    assert (
        page.startswith("<!doctype html>")
        and "<script" not in page
        and "http://" not in page
        and "https://" not in page
    )
    assert page.count("<svg") >= 4
    assert (tmp_path / "plots" / "abs-log-ratio.svg").read_text().startswith("<svg")

    # again: the same numbers, with no model loaded and no judge asked
    kept = (tmp_path / "stories.jsonl").read_bytes()
    monkeypatch.setattr(command, "open_engine", no_engine)
    assert evaluate(tiny_models, tmp_path, "--pairwise", *STORIES) == 0
    assert (tmp_path / "stories.jsonl").read_bytes() == kept
    again = result_of(tmp_path)
    assert [m["measures"] for m in again["models"]] == [m["measures"] for m in found["models"]]


def test_an_llm_judge_grades_compares_and_is_paid_once(tiny_models, tmp_path, capsys):
    with judge_double() as double:
        judge = (
            *("--judge.base_url", double.base_url, "--judge.model", "double"),
            *("--judge.check_at_start", "false", "--judge.price_input", "1"),
            *("--judge.price_output", "2", "--judge.preset", "null"),
        )
        asked = ("--dimensions", "--pairwise", *judge)
        assert evaluate(tiny_models, tmp_path, *asked) == 0
        err = capsys.readouterr().err
        # 24 by the rubric, 24 for S_Q, 12 pairs in 2 orders
        assert "double: at most 72 calls" in err and "USD" in err
        first = list(double.asked)
        assert evaluate(tiny_models, tmp_path, *asked) == 0
        assert double.asked == first
    found = result_of(tmp_path)
    scores = found["models"][0]["measures"]
    assert scores["s_q"]["all"]["estimate"] == pytest.approx(62.5)
    s_l = scores["s_l"]["all"]["estimate"]
    assert scores["s"]["all"]["estimate"] == pytest.approx((s_l + 62.5) / 2)
    assert found["pairwise"]["consistent"] == 1.0  # longer is better knows no order
    assert found["settings"]["judge_is_local"] is False


def test_questions_that_the_judge_refuses_end_the_command(tiny_models, tmp_path, capsys):
    with judge_double() as double:
        double.answers["dimensions"] = lambda messages: 400
        judge = ("--judge.base_url", double.base_url, "--judge.check_at_start", "false")
        assert evaluate(tiny_models[:1], tmp_path, "--dimensions", *judge) == 2
        assert "judge.base_url:" in capsys.readouterr().err
        asked = double.asked.count("rubric")
        assert evaluate(tiny_models[:1], tmp_path, *judge) == 0  # what was judged is kept
        assert double.asked.count("rubric") == asked
    assert result_of(tmp_path)["settings"]["word_counter"] == "whitespace"


def test_answers_that_cannot_be_had_are_left_out_and_told(tiny_models, tmp_path):
    with judge_double() as double:
        double.answers["dimensions"] = lambda messages: "I would rather not."
        judge = ("--judge.base_url", double.base_url, "--judge.check_at_start", "false")
        assert evaluate(tiny_models[:1], tmp_path, "--dimensions", *judge) == 0
    found = result_of(tmp_path)
    assert "s_q" not in found["models"][0]["measures"]
    assert "quality" in found["models"][0]["measures"]
    assert any("S_Q: 12 answers could not be had" in note for note in found["notes"])


def test_a_stopped_evaluation_goes_on_where_it_was(tiny_models, tmp_path, capsys, monkeypatch):
    write = writing.write_stories

    def stops_after_five(writer, engine, tasks, store, *, on_story, check_stop):
        left = [5]

        def on_one(written):
            on_story(written)
            left[0] -= 1
            if not left[0]:
                raise StopRequested("SIGINT")

        write(writer, engine, tasks, store, on_story=on_one, check_stop=check_stop)

    monkeypatch.setattr(command, "write_stories", stops_after_five)
    assert evaluate(tiny_models[:1], tmp_path) == 130
    assert "stopped by SIGINT" in capsys.readouterr().err
    assert len((tmp_path / "stories.jsonl").read_text().splitlines()) == 5
    monkeypatch.setattr(command, "write_stories", write)
    assert evaluate(tiny_models[:1], tmp_path) == 0
    assert "12 stories, 5 of them written before" in capsys.readouterr().err
    whole = result_of(tmp_path)["models"][0]["measures"]
    assert evaluate(tiny_models[:1], tmp_path / "in-one-go") == 0
    assert result_of(tmp_path / "in-one-go")["models"][0]["measures"] == whole


def test_other_weights_in_the_same_folder_are_written_with_anew(tiny_models, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_models[0], folder)
    assert evaluate([folder], tmp_path / "out", "--no-judge") == 0
    shutil.copyfile(tiny_models[1] / "model.safetensors", folder / "model.safetensors")
    assert evaluate([folder], tmp_path / "out", "--no-judge", "--dry-run") == 0
    assert "model: 12 stories, 0 of them written before" in capsys.readouterr().err


def test_a_cut_story_is_written_anew_under_a_larger_limit_only(tiny_models, tmp_path, capsys):
    assert evaluate(tiny_models[:1], tmp_path, "--no-judge") == 0
    stories = [json.loads(s) for s in (tmp_path / "stories.jsonl").read_text().splitlines()]
    whole = sum(not story["truncated"] for story in stories)
    capsys.readouterr()
    evaluate(tiny_models[:1], tmp_path, "--no-judge", "--max_completion_length=50", "--dry-run")
    assert f"12 stories, {whole} of them written before" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(tiny_models, tmp_path, capsys):
    assert evaluate(tiny_models, tmp_path / "new", "--dry-run") == 0
    assert not (tmp_path / "new").exists()
    err = capsys.readouterr().err
    assert "12 stories" in err and "local heuristic judge: at most 24 calls" in err


def test_a_second_evaluation_in_one_folder_is_refused(tiny_models, tmp_path, capsys):
    with sole_writer(tmp_path):
        assert evaluate(tiny_models[:1], tmp_path, "--no-judge") == 2
        assert "another evaluation is writing to" in capsys.readouterr().err
        assert evaluate(tiny_models[:1], tmp_path, "--no-judge", "--dry-run") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--words", "ten"), "--words: must be numbers of words"),
        (("--words", "0"), "--words: must be numbers of at least 1"),
        (("--buckets", "9,3"), "--buckets: must be at least two rising numbers"),
        (("--samples", "0"), "--samples: must be at least 1, got 0"),
        (("--num-prompts", "0"), "--num-prompts: must be at least 1"),
        (("--judge-samples", "0"), "--judge-samples: must be at least 1"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--judge.base_url", "ftp://x"), "judge.base_url: 'ftp://x' is no http"),
        (
            ("--judge.base_url", "https://api.openai.com/v1"),
            "judge.api_key_env: the variable OPENAI",
        ),
        (("--no-judge", "--dimensions"), "--no-judge: --dimensions needs a judge"),
        (("--engine", "vllm"), "vLLM is not installed"),
        (("--temprature", "1"), "did you mean 'temperature'"),
        (("--memorisation", "--prefix-words", "5000", *STORIES), "--prefix-words: none of the"),
        (("--memorisation",), "--memorisation: needs training stories, and none are known"),
        (("--memorisation=-1",), "--memorisation: must not be below 0"),
    ],
)
def test_mistakes_are_named_before_a_model_is_loaded(
    arguments, message, tiny_models, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(command, "open_engine", no_engine)
    assert evaluate(tiny_models, tmp_path, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_without_a_model_the_latest_run_is_compared_with_its_base(
    tiny_models, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate"]) == 2
    assert "there is no run in runs/latest; name a model, or train" in capsys.readouterr().err
    shutil.copytree(tiny_models[0], tmp_path / "runs" / "latest" / "base")
    shutil.copytree(tiny_models[1], tmp_path / "runs" / "latest" / "checkpoint-3")
    assert main(["evaluate", "--dry-run", *SHORT]) == 0
    err = capsys.readouterr().err
    assert "base: 12 stories" in err and "checkpoint-3: 12 stories" in err


def test_models_that_are_not_there_or_given_twice(tiny_models, tmp_path, capsys):
    assert evaluate([tmp_path / "none"], tmp_path) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert evaluate([tiny_models[0], tiny_models[0]], tmp_path) == 2
    assert "are the same model; give each once" in capsys.readouterr().err
    assert evaluate(tiny_models[:1], tmp_path, "--pairwise") == 2
    assert "--pairwise: needs two models" in capsys.readouterr().err
