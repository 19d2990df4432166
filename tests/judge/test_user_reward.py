"""A user's own reward: how it is found, called and read."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time

import numpy as np
import pytest

from polaris_fast.config import JudgeConfig, RewardConfig
from polaris_fast.judge import JudgeJob, JudgePool, UserReward, open_scorer
from polaris_fast.judge.user_reward import load_callable
from polaris_fast.types import Failed, Scored, UserError

MODULE = "rewards_of_a_user"
SOURCE = """
import asyncio, threading
calls = []
constant = 3

def words(prompts, completions, **columns):
    calls.append((prompts, completions, columns, threading.current_thread().name))
    return [len(c.split()) / t for c, t in zip(completions, columns["target"])]

def only_completions(completions, prompts, target):
    return [float(target[0])]

async def asynchronous(prompts, completions, **columns):
    await asyncio.sleep(0.05)
    return [0.5]

class Model:
    def __call__(self, prompts, completions, **columns):
        return [0.25]

    def method(self, prompts, completions):
        return [0.75]

model = Model()

def raises(prompts, completions, **columns):
    raise RuntimeError("out of ink")

def no_completions(prompts):
    return [1.0]
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """The module above in the working directory, which is not on the path."""
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    (tmp_path / "rewards_that_break.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield
    sys.modules.pop(MODULE, None)


def job(**changes) -> JudgeJob:
    return JudgeJob(job_id="0/0/0", prompt="p", story="a b c", **changes)


def score(name: str, **changes):
    with UserReward(f"{MODULE}:{name}") as scorer:
        outcome = scorer.submit(job(**changes)).result(timeout=5)
        return outcome, scorer.take_metrics()


def returning(monkeypatch, value) -> None:
    """Make the user's `words` return `value`."""
    module = sys.modules[MODULE]
    monkeypatch.setattr(module, "words", lambda prompts, completions, **columns: value)


def test_called_with_lists_and_columns_off_the_calling_thread(user_module):
    outcome, metrics = score("words", columns={"target": 6, "prompts": "clash"})
    assert outcome == Scored(0.5, judge=f"{MODULE}:words")
    prompts, completions, columns, thread = sys.modules[MODULE].calls[0]
    assert (prompts, completions, columns) == (["p"], ["a b c"], {"target": [6]})
    assert thread != threading.current_thread().name
    assert metrics["judge/submitted"] == metrics["judge/scored"] == 1
    assert metrics["judge/quality"] == 0.5


def test_only_the_columns_it_names(user_module):
    outcome, _ = score("only_completions", columns={"target": 6, "uid": "x"})
    assert outcome.quality == 6.0


@pytest.mark.parametrize(("name", "quality"), [("model", 0.25), ("model.method", 0.75)])
def test_objects_and_methods(user_module, name, quality):
    assert score(name)[0].quality == quality


def test_async_calls_run_side_by_side(user_module):
    with UserReward(f"{MODULE}:asynchronous") as scorer:
        begin = time.monotonic()
        futures = [scorer.submit(job()) for _ in range(20)]
        assert all(future.result().quality == 0.5 for future in futures)
    assert time.monotonic() - begin < 0.9  # one after the other takes 1 s


def test_samples_do_not_matter(user_module):
    score("words", samples=3, columns={"target": 6})
    assert len(sys.modules[MODULE].calls) == 1


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        ([None], "user_none", "None"),
        ([math.nan], "user_not_finite", "nan"),
        ([-math.inf], "user_not_finite", "-inf"),
        ([], "user_shape", "list"),
        ([1.0, 2.0], "user_shape", "here 1"),
        (1.0, "user_shape", "list"),
        (None, "user_shape", "list"),
        ("1", "user_shape", "list"),
        (["1"], "user_shape", "floats"),
        ([True], "user_shape", "floats"),
    ],
)
def test_no_number_is_a_failure(user_module, monkeypatch, value, kind, reason):
    load_callable(f"{MODULE}:words")
    returning(monkeypatch, value)
    outcome, metrics = score("words")
    assert isinstance(outcome, Failed)
    assert outcome.kind == kind
    assert reason in outcome.reason
    assert f"{MODULE}:words" in outcome.reason
    assert metrics[f"judge/failures/{kind}"] == 1


@pytest.mark.parametrize("value", [[1], (0.5,), np.array([0.5]), [np.float32(0.5)]])
def test_other_numbers_are_fine(user_module, monkeypatch, value):
    load_callable(f"{MODULE}:words")
    returning(monkeypatch, value)
    outcome, _ = score("words")
    assert isinstance(outcome, Scored)
    assert type(outcome.quality) is float


def test_exception_is_a_failure_with_its_message(user_module):
    outcome, _ = score("raises")
    assert isinstance(outcome, Failed)
    assert outcome.kind == "user_error"
    assert "RuntimeError: out of ink" in outcome.reason


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("no_colon", "form"),
        (":words", "form"),
        (f"{MODULE}:", "form"),
        ("no_such_module_here:f", "ModuleNotFoundError"),
        ("rewards_that_break:f", "no_such_module_anywhere"),
        (f"{MODULE}:wrods", "has no 'wrods'"),
        (f"{MODULE}:constant", "not a callable"),
        (f"{MODULE}:no_completions", "completions"),
    ],
)
def test_what_cannot_be_loaded(user_module, spec, why):
    with pytest.raises(UserError) as caught:
        UserReward(spec)
    message = str(caught.value)
    assert "reward.function" in message
    assert repr(spec) in message
    assert why in message
    assert "working directory" in message


def test_close_ends_what_is_waiting(user_module, monkeypatch):
    load_callable(f"{MODULE}:words")
    release = threading.Event()

    def wait(prompts, completions, **columns):
        release.wait(5)
        return [1.0]

    monkeypatch.setattr(sys.modules[MODULE], "words", wait)
    with UserReward(f"{MODULE}:words") as scorer:
        futures = [scorer.submit(job()) for _ in range(3)]
    release.set()
    assert [f.result(timeout=1).kind for f in futures] == ["cancelled"] * 3
    metrics = scorer.take_metrics()
    assert metrics["judge/submitted"] == metrics["judge/failed"] == 3
    with pytest.raises(RuntimeError):
        scorer.submit(job())


def test_configuration_chooses(user_module):
    assert isinstance(open_scorer(JudgeConfig(), RewardConfig()), JudgePool)
    chosen = open_scorer(JudgeConfig(), RewardConfig(function=f"{MODULE}:words"))
    assert isinstance(chosen, UserReward)


def test_async_cancellation_at_close(user_module, monkeypatch):
    load_callable(f"{MODULE}:asynchronous")

    async def forever(prompts, completions, **columns):
        await asyncio.sleep(60)

    monkeypatch.setattr(sys.modules[MODULE], "asynchronous", forever)
    with UserReward(f"{MODULE}:asynchronous") as scorer:
        future = scorer.submit(job())
    assert future.result(timeout=1).kind == "cancelled"
