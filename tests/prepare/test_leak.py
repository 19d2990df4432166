"""What counts as giving a story away."""

from __future__ import annotations

import pytest

from polaris_fast.data import load_samples
from polaris_fast.prepare.prompts.extractive import safe_extract
from polaris_fast.prepare.prompts.leak import find_leak
from polaris_fast.prepare.prompts.messages import cut_plan, plain_answer, prompt_problem

STORY = (
    "The old man rowed to the island before the morning fog had lifted from the water. "
    "Nobody had asked him to go. \u201cIt\u2019s my boat,\u201d he said."
)


@pytest.mark.parametrize(
    ("prompt", "phrase"),
    [
        ("Tell how THE OLD MAN, rowed to the island; before dawn.",
         "the old man rowed to the island before"),
        ("A tale of an old man. Nobody had asked him to go!", "nobody had asked him to go"),
        ('Use the words "before the morning fog had" somewhere.', "before the morning fog had"),
    ],
)  # fmt: skip
def test_leaks_are_found_under_other_signs_and_case(prompt: str, phrase: str) -> None:
    assert find_leak(prompt, STORY) == phrase


@pytest.mark.parametrize(
    "prompt",
    [
        "An old man rows to an island in the fog, though nobody wants him to.",
        'Write a short story called "It\'s my boat".',
        "The old man rowed to the island for bread.",  # seven words in common
    ],
)
def test_own_words_are_no_leak(prompt: str) -> None:
    assert find_leak(prompt, STORY) is None


def test_a_title_may_be_quoted_but_not_as_long_as_a_gram() -> None:
    prompt = 'Write "Before the Morning Fog Had Lifted" anew.'
    assert find_leak(prompt, STORY, "Before the Morning Fog Had Lifted") is None
    assert find_leak(prompt, STORY, "Another Title") is not None


def test_no_extracted_prompt_leaks() -> None:
    for record in load_samples():
        assert record.story is not None
        prompt = safe_extract("Lamp", record.story)
        assert find_leak(prompt, record.story) is None and '"Lamp"' in prompt
        first_line = " ".join(record.story.split()[:9])
        assert find_leak(safe_extract(first_line, record.story), record.story) is None


def test_answers_lose_thinking_labels_and_quotation_marks() -> None:
    assert plain_answer('<think>hm</think>\n**Prompt:** "Tell of a well."') == "Tell of a well."
    assert plain_answer('"A" and "B" meet.') == '"A" and "B" meet.'


def test_prompts_are_bounded_and_silent_about_length() -> None:
    from polaris_fast.prepare.document import Story

    story = Story("u", "T", "", "", STORY, 20, "", "", "extractive")
    own = "A fisherman goes out alone on a grey day and comes back changed in some small way."
    assert prompt_problem(own, story) is None
    assert prompt_problem("Too short.", story) == ("length", "it has 2 words, wanted are 40 to 110")
    assert prompt_problem(f"{own} Use 2,000 words.", story) is not None
    assert prompt_problem("word " * 200, story) is not None


def test_long_plans_end_with_a_sentence_and_short_ones_are_none() -> None:
    plan = "I think of the sea first. " * 120
    kept = cut_plan(plan)
    assert kept.endswith("first.") and len(kept.split()) <= 450
    assert cut_plan("Too short.") == ""
