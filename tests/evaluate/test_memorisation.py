"""The prefix attack, with an engine that knows its story by heart and one that does not."""

from __future__ import annotations

import random

import pytest

from polaris_fast.evaluate.memorisation import (
    Attack,
    _prompt_ids,
    attack_stories,
    choose_attacked,
    compare,
    is_done,
    longest_common_run,
    summarize_memory,
)
from polaris_fast.evaluate.store import JsonLines
from polaris_fast.evaluate.wilson import wilson_interval
from polaris_fast.rollout import Completion
from polaris_fast.types import FinishReason, StoryRecord, UserError

STORY = " ".join(f"w{i}" for i in range(40))
RECORD = StoryRecord("s1", "A prompt.", 40, STORY)
ATTACK = Attack(prefix_words=10, verbatim=8)


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [("abcdef", "xbcdy", 3), ("abc", "xyz", 0), ("", "a", 0), ("aaa", "aa", 2)],
)
def test_longest_common_run(a, b, length):
    assert longest_common_run(list(a), list(b)) == length


def test_longest_common_run_equals_the_definition():
    rng = random.Random(1)
    for _ in range(20):
        a, b = rng.choices("ab", k=12), rng.choices("ab", k=9)
        runs = ["".join(b[i:j]) for i in range(9) for j in range(i + 1, 10)]
        slow = max((len(run) for run in runs if run in "".join(a)), default=0)
        assert longest_common_run(a, b) == slow


def test_a_verbatim_continuation_is_extracted():
    found = compare(RECORD, " ".join(f"w{i}" for i in range(10, 30)), ATTACK)
    assert found.extracted and found.exact_tokens == found.longest == 20
    assert found.verbatim_share == 1.0


def test_a_late_quote_is_no_extraction_but_shows():
    text = "x y z " + " ".join(f"w{i}" for i in range(20, 30))
    found = compare(RECORD, text, ATTACK)
    # 13 tokens, 6 8-grams, the last 3 of them are the story's
    assert not found.extracted and found.exact_tokens == 0 and found.longest == 10
    assert found.verbatim_share == pytest.approx(3 / 6)


def test_the_given_prefix_does_not_count_as_remembered():
    found = compare(RECORD, " ".join(f"w{i}" for i in range(10)), ATTACK)
    assert found.longest == 0 and found.verbatim_share == 0.0


def test_short_stories_are_passed_over_and_none_is_an_error():
    short = StoryRecord("s2", "p", 5, "only five words are here")
    assert choose_attacked([short, RECORD], ATTACK, 5) == [RECORD]
    with pytest.raises(UserError, match="--prefix-words: none of the 1 training stories has 8"):
        choose_attacked([short], ATTACK, 5)


def test_the_prefix_is_the_story_as_it_stands(tiny_writer):
    story = "One two,\n\nthree  four\nfive " + STORY
    record = StoryRecord("s3", "A prompt.", 45, story)
    ids = _prompt_ids(tiny_writer.builder, record, Attack(prefix_words=4, verbatim=8))
    whole = [
        *tiny_writer.builder.prompt_ids(record),
        *tiny_writer.builder.human_completion_ids(record),
    ]
    assert ids == whole[: len(ids)]
    shown = tiny_writer.builder.tokenizer.decode(ids)
    assert shown.endswith("One two,\n\nthree  four")


def test_attacked_stories_are_a_draw_and_not_the_first_of_the_file():
    records = [StoryRecord(f"s{i}", "p", 40, STORY) for i in range(30)]
    drawn = {r.uid for r in choose_attacked(records, ATTACK, 5)}
    assert drawn == {r.uid for r in choose_attacked(records[::-1], ATTACK, 5)}
    assert drawn != {f"s{i}" for i in range(5)}


@pytest.mark.parametrize(
    ("hits", "cases", "low", "high"),
    [(0, 20, 0.0, 0.161), (10, 20, 0.299, 0.701), (20, 20, 0.839, 1.0), (1, 1, 0.207, 1.0)],
)
def test_wilson_intervals_by_the_published_formula(hits, cases, low, high):
    found = wilson_interval(hits, cases)
    assert found.estimate == hits / cases
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)


class Echo:
    """Continues every prompt with the story's words from the tenth on."""

    calls = 0

    def generate(self, requests, params, on_finish, on_token=None):
        self.calls += len(requests)
        self.params, self.requests = params, requests
        text = " ".join(f"w{i}" for i in range(10, 40))
        for index in range(len(requests)):
            on_finish(index, Completion(self.encode(text), None, None, FinishReason.STOP))


def test_the_attack_is_greedy_ends_with_the_prefix_and_is_kept(tmp_path, tiny_writer):
    engine = Echo()
    engine.encode = lambda text: tiny_writer.builder.tokenizer(text)["input_ids"]
    with JsonLines(tmp_path / "m.jsonl") as store:
        for _ in range(2):
            attack_stories(tiny_writer, engine, [RECORD], ATTACK, store, lambda: None)
        assert is_done(tiny_writer, [RECORD], ATTACK, store)
        assert not is_done(tiny_writer, [RECORD], Attack(5, 8), store)
        found = summarize_memory(tiny_writer, [RECORD], ATTACK, store)
    assert engine.calls == 1
    assert engine.params.top_k == 1 and engine.params.repetition_penalty == 1.0
    shown = tiny_writer.builder.tokenizer.decode(engine.requests[0].prompt_ids)
    assert shown.endswith("w8 w9") and "A prompt." in shown
    extracted = found["intervals"]["extracted"]
    assert extracted["estimate"] == extracted["high"] == 1.0 and 0.2 < extracted["low"] < 0.21
    assert found["intervals"]["verbatim_share"]["low"] is None  # one story tells no spread
    assert found["extracted"] == found["verbatim_share"] == 1.0 and found["longest_max"] == 30
