"""A judge that is away or too dear: the run saves its work, stops, and can go on later."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from benchmarks import scripted_endpoint as play
from benchmarks.scripted_endpoint import ScriptedServer
from polaris_fast.checkpoint import list_checkpoints
from polaris_fast.data import load_samples
from polaris_fast.embedded import build_tokenizer
from polaris_fast.judge.canary import probe_job
from polaris_fast.model.tiny import tiny_model
from tests.runs import exact, metrics_of, train

MANY = 500  # more requests for one story than a run sends
DEAR = 10_000_000  # prompt tokens of an answer that costs more than any budget here
SETTINGS: dict[str, Any] = {
    "save_steps": 100,  # only the end and an emergency write a checkpoint
    "hri__mode": "off",
    "judge__api_key_env": "POLARIS_TEST_NO_KEY",
    "judge__check_at_start": "false",  # a script plays for the stories alone
    "judge__breaker_pause_s": 0.02,
    "judge__price_input": 1000.0,
    "judge__price_output": 10_000.0,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in a folder."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = build_tokenizer([r.story or "" for r in load_samples("micro")], 600)
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def scored(story: str, prompt_tokens: int = 100) -> play.Behaviour:
    """A score that follows from the story."""
    points = zlib.crc32(story.encode()) % 60
    tree = play.completion(json.dumps(play.answer_tree(points)))
    tree["usage"] = {"prompt_tokens": prompt_tokens, "completion_tokens": 10}
    return play.body(tree)


def judge(choose: Callable[[str], play.Behaviour]) -> Callable[[str], list[play.Behaviour]]:
    """A script that decides at each request."""

    def script(story: str) -> list[play.Behaviour]:
        async def behave(request: web.Request) -> web.StreamResponse:
            return await choose(story)(request)

        return [behave] * MANY

    return script


def run_with(server: ScriptedServer, base: Path, run: Path, **changes: Any) -> int:
    settings = SETTINGS | {"model_name_or_path": base, "judge__base_url": server.base_url}
    return train(run, **(settings | changes))


def num_steps(run: Path) -> int:
    return len(metrics_of(run)) if (run / "metrics.jsonl").exists() else 0


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Metrics of two steps with a judge that is well."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    with ScriptedServer(judge(scored)) as server:
        assert run_with(server, base, run) == 0
    return exact(run)


def test_while_the_judge_is_away_the_last_step_is_saved(
    base: Path, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    run, away = tmp_path / "run", Counter[bool]()

    def choose(story: str) -> play.Behaviour:
        if num_steps(run) and not list_checkpoints(run):
            away[story == probe_job().story] += 1
            return play.status(402)
        return scored(story)

    with ScriptedServer(judge(choose)) as server:
        assert run_with(server, base, run, judge__breaker_patience_s=30) == 0
    assert away[False] >= 1 and away[True] >= 1
    assert [p.name for p in list_checkpoints(run)] == ["checkpoint-1", "checkpoint-2"]
    assert exact(run) == undisturbed


def test_a_judge_that_stays_away_stops_the_run_and_it_goes_on_later(
    base: Path,
    tmp_path: Path,
    undisturbed: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    refuses = [True]

    def choose(story: str) -> play.Behaviour:
        return play.status(402) if refuses[0] and num_steps(run) else scored(story)

    with ScriptedServer(judge(choose)) as server:
        assert run_with(server, base, run, judge__breaker_patience_s=0.1) == 2
        error = capsys.readouterr().err
        assert "judge.breaker_patience_s (0.1 s)" in error and "resume_from_checkpoint" in error
        assert exact(run) == undisturbed[:1]
        assert [p.name for p in list_checkpoints(run)] == ["checkpoint-1"]
        refuses[0] = False
        assert run_with(server, base, run, resume_from_checkpoint=run) == 0
    assert exact(run) == undisturbed


def test_a_spent_budget_stops_the_run_and_no_score_is_paid_for_twice(
    base: Path,
    tmp_path: Path,
    undisturbed: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, paid = tmp_path / "run", Counter[str]()

    def choose(story: str) -> play.Behaviour:
        paid[story] += 1
        return scored(story, DEAR if num_steps(run) else 100)

    with ScriptedServer(judge(choose)) as server:
        assert run_with(server, base, run, judge__max_cost_usd=100.0) == 2
        error = capsys.readouterr().err
        assert "judge.max_cost_usd" in error and "raise it" in error
        assert "resume_from_checkpoint" in error
        assert exact(run) == undisturbed[:1]  # the second step was not trained on what it had
        before = len(paid)
        more = {"judge__max_cost_usd": "null"}
        assert run_with(server, base, run, resume_from_checkpoint=run, **more) == 0
    assert exact(run) == undisturbed
    assert before < len(paid) and set(paid.values()) == {1}


def test_what_an_evaluation_cost_stands_in_its_file(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    held_out = {"data__eval_fraction": 0.3, "eval_on_start": "true", "num_eval_generations": 1}
    with ScriptedServer(judge(scored)) as server:
        assert run_with(server, base, run, **held_out) == 0
    result = json.loads((run / "eval-start.json").read_text())
    assert result["num_scored"] > 0
    # a story may be judged a second time, without what it says to its judge
    assert 0.19 < result["judge_cost_usd"] / result["num_scored"] < 0.41
