"""Questions to an endpoint: retried, asked again with the fault, kept, never a made-up number."""

from __future__ import annotations

import json

import pytest

from polaris_fast.config import JudgeConfig
from polaris_fast.evaluate.asking import Asker, read_object
from polaris_fast.evaluate.dimensions import DIMENSIONS, dimensions_question, quality_score
from polaris_fast.evaluate.store import JsonLines
from polaris_fast.judge import Backoff
from polaris_fast.types import Failed, UserError

from .judge_double import GRADES, judge_double


def config(base_url: str, **changes) -> JudgeConfig:
    settings = {"base_url": base_url, "model": "double", "api_key_env": "", "deadline_s": 20}
    return JudgeConfig(**(settings | changes))


def ask(double, tmp_path, *stories: str, **changes):
    questions = [dimensions_question("S_Q", "A prompt.", story) for story in stories]
    with JsonLines(tmp_path / "answers.jsonl") as store:
        backoff = Backoff(0.001, 0.01)
        with Asker(config(double.base_url, **changes), store, backoff=backoff) as asker:
            return asker.ask_all(questions)


def test_s_q_by_hand():
    assert quality_score(dict.fromkeys(DIMENSIONS, 5)) == 100.0
    assert quality_score(dict.fromkeys(DIMENSIONS, 1)) == 0.0
    # 5 4 4 3 2 3: (4 + 3 + 3 + 2 + 1 + 2) 25 / 6
    assert quality_score(GRADES) == pytest.approx(62.5)


def test_answers_are_kept_and_not_asked_for_twice(tmp_path):
    with judge_double() as double:
        first = ask(double, tmp_path, "One.", "Two.")
        assert [quality_score(answer) for answer in first] == pytest.approx([62.5, 62.5])
        again = ask(double, tmp_path, "Two.", "Three.")
        assert len(double.asked) == 3 and again[0] == first[1]


def test_a_failing_endpoint_is_tried_again(tmp_path):
    with judge_double() as double:
        good = double.answers["dimensions"]
        double.answers["dimensions"] = lambda m: 503 if len(double.asked) < 3 else good(m)
        assert quality_score(ask(double, tmp_path, "One.")[0]) == pytest.approx(62.5)
        assert len(double.asked) == 3


def test_an_invalid_answer_is_asked_for_again_with_its_fault(tmp_path):
    seen = []

    def answer(messages):
        seen.append(messages)
        grade = 6 if len(seen) == 1 else 5
        return json.dumps({**GRADES, "relevance": grade})

    with judge_double() as double:
        double.answers["dimensions"] = answer
        assert ask(double, tmp_path, "One.")[0]["relevance"] == 5
    assert "relevance must be a whole number from 1 to 5, got 6" in seen[1][3]["content"]
    assert len(seen[0]) == 2 and len(seen[1]) == 4


def test_what_cannot_be_had_is_failed_and_not_kept(tmp_path):
    with judge_double() as double:
        double.answers["dimensions"] = lambda messages: "I would rather not."
        found = ask(double, tmp_path, "One.")[0]
        assert isinstance(found, Failed) and found.kind == "invalid"
        double.answers["dimensions"] = lambda messages: json.dumps(GRADES)
        assert not isinstance(ask(double, tmp_path, "One.")[0], Failed)


def test_nothing_is_asked_beyond_the_money(tmp_path):
    prices = {"price_input": 1000.0, "price_output": 1000.0, "max_output_tokens": 100}
    with judge_double() as double:
        stories = [f"Story {i}." for i in range(12)]
        found = ask(double, tmp_path, *stories, max_cost_usd=2.0, **prices)
        spent_usd = double.num_tokens / 1000
    kinds = [answer.kind if isinstance(answer, Failed) else "ok" for answer in found]
    # a call may cost nearly twice what it does cost: money is used until one may pass the limit
    assert kinds.count("ok") == len(double.asked) >= 2 and "budget" in kinds
    assert kinds.count("ok") + kinds.count("budget") == 12
    assert 1.0 < spent_usd <= 2.0


DEAR = {"price_input": 1000.0, "price_output": 1000.0, "max_output_tokens": 100}


def test_an_endpoint_that_counts_no_tokens_spends_the_money_all_the_same(tmp_path, caplog):
    with judge_double() as double:
        double.tells_usage = False
        stories = [f"Story {i}." for i in range(12)]
        found = ask(double, tmp_path, *stories, max_cost_usd=2.0, **DEAR)
        spent_usd = double.num_tokens / 1000
    kinds = [answer.kind if isinstance(answer, Failed) else "ok" for answer in found]
    assert kinds.count("ok") >= 1 and kinds.count("budget") >= 1 and spent_usd <= 2.0
    assert caplog.text.count("does not count the tokens") == 1


def test_an_answer_that_came_too_late_is_paid_for(tmp_path):
    late = {"timeout_s": 0.05, "max_attempts": 20, "max_concurrency": 1}
    with judge_double() as double:
        double.latency_s = 0.4
        found = ask(double, tmp_path, "One.", "Two.", max_cost_usd=2.0, **DEAR, **late)
        assert {answer.kind for answer in found} == {"budget"}
        assert 1 <= len(double.asked) <= 4  # a call may cost half a dollar


@pytest.mark.parametrize("status", [401, 402, 404])
def test_an_endpoint_that_would_refuse_every_question_is_asked_no_more(tmp_path, status):
    with judge_double() as double:
        double.answers["dimensions"] = lambda m: json.dumps(GRADES) if "One." in str(m) else status
        ask(double, tmp_path, "One.")
        stories = [f"Story {i}." for i in range(50)]
        with pytest.raises(UserError, match=r"judge\.base_url: .* refuses the questions for S_Q"):
            ask(double, tmp_path, *stories, max_concurrency=3)
        assert 1 < len(double.asked) <= 1 + 3
        ask(double, tmp_path, "One.")  # is kept


def test_a_question_asked_twice_at_once_is_paid_once(tmp_path):
    with judge_double() as double:
        double.latency_s = 0.05
        found = ask(double, tmp_path, "One.", "Two.", "One.")
        assert len(double.asked) == 2 and found[0] == found[2]


def test_a_stop_request_ends_the_wait(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with judge_double() as double, JsonLines(tmp_path / "answers.jsonl") as store:
        with Asker(config(double.base_url), store) as asker:
            with pytest.raises(KeyboardInterrupt):
                asker.ask_all([dimensions_question("S_Q", "p", "s")], check_stop=stop)


@pytest.mark.parametrize(
    "text",
    ['{"a": 1}', '```json\n{"a": 1}\n```', '<think>{"a": 2}</think> {"a": 1}', 'Sure: {"a": 1}.'],
)
def test_an_object_is_found_whatever_stands_around_it(text):
    assert read_object(text) == {"a": 1}


@pytest.mark.parametrize("text", ["", "no", "{broken", '{"a": }'])
def test_no_object_is_an_error(text):
    with pytest.raises(ValueError, match="JSON"):
        read_object(text)
