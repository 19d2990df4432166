"""Prompts and human rows under chat templates that do and do not open a thought."""

from __future__ import annotations

from typing import Any

import pytest

from polaris_fast.config_file import load_config
from polaris_fast.data import load_samples
from polaris_fast.embedded import build_tokenizer
from polaris_fast.prompts import PromptBuilder, has_human_row
from polaris_fast.types import StoryRecord, UserError

RECORD = StoryRecord("u", "Write about the sea.", 40, "The sea was calm.", "Plan: calm sea.")
PLAIN_CHATML = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + "
    "'<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer([r.story or "" for r in load_samples()], vocab_size=600)


def _builder(tokenizer: Any, template: str | None = "own", **overrides: str) -> PromptBuilder:
    if template != "own":
        tokenizer = type(tokenizer)(
            tokenizer_object=tokenizer.backend_tokenizer,
            eos_token="<|im_end|>",
            chat_template=template,
        )
    keys = {k.replace("__", "."): v for k, v in overrides.items()}
    return PromptBuilder(tokenizer, load_config(None, keys))


def _text(builder: PromptBuilder, ids: list[int]) -> str:
    return str(builder.tokenizer.decode(ids, skip_special_tokens=False))


def test_the_policy_sees_the_length_sentence(tokenizer: Any) -> None:
    builder = _builder(tokenizer)
    text = _text(builder, builder.prompt_ids(RECORD))
    assert "Write about the sea.\nThe story should be about 40 words long." in text


def test_without_thinking_the_human_row_is_the_story_and_the_end_token(tokenizer: Any) -> None:
    builder = _builder(tokenizer)
    ids = builder.human_completion_ids(RECORD)
    assert ids[-1] == builder.end_of_turn_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert _text(builder, ids) == "The sea was calm.<|im_end|>"
    assert builder.decode(ids) == ("", "The sea was calm.")


def test_a_template_that_opens_the_thought_gets_no_second_one(tokenizer: Any) -> None:
    builder = _builder(tokenizer, data__thinking="true")
    assert builder.opens_thinking
    ids = builder.human_completion_ids(RECORD)
    whole = _text(builder, builder.prompt_ids(RECORD) + ids)
    assert whole.count("<think>") == 1 and whole.count("</think>") == 1
    assert whole.endswith("<think>\nPlan: calm sea.\n</think>\n\nThe sea was calm.<|im_end|>")
    assert builder.decode(ids) == ("Plan: calm sea.", "The sea was calm.")


def test_a_template_that_does_not_open_it_gets_it_in_the_row(tokenizer: Any) -> None:
    builder = _builder(tokenizer, PLAIN_CHATML, data__thinking="true")
    assert not builder.opens_thinking
    ids = builder.human_completion_ids(RECORD)
    assert _text(builder, ids).startswith("<think>\nPlan: calm sea.\n</think>")
    assert builder.decode(ids) == ("Plan: calm sea.", "The sea was calm.")


def test_a_thinking_row_that_never_closes_has_no_story(tokenizer: Any) -> None:
    builder = _builder(tokenizer, data__thinking="true")
    ids = builder._encode("I think and think")
    assert builder.decode(ids) == ("I think and think", "")


def test_without_a_template_the_eos_token_closes_the_row(tokenizer: Any) -> None:
    builder = _builder(tokenizer, None)
    assert builder.human_completion_ids(RECORD)[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(("choice", "expected"), [("skip", False), ("empty", True)])
def test_missing_reasoning_follows_the_setting(tokenizer: Any, choice: str, expected: bool) -> None:
    bare = StoryRecord("u", "p", 5, "A story.")
    builder = _builder(tokenizer, data__thinking="true", hri__missing_reasoning=choice)
    assert has_human_row(bare, builder.config) is expected
    strict = _builder(tokenizer, data__thinking="true")
    with pytest.raises(UserError, match=r"hri\.missing_reasoning.*'u'"):
        has_human_row(bare, strict.config)


def test_a_prompt_or_story_over_its_limit_is_refused_by_name(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"max_prompt_length: the prompt of record 'u' has \d+"):
        _builder(tokenizer, max_prompt_length="5").prompt_ids(RECORD)
    with pytest.raises(UserError, match=r"max_completion_length: the human story of record 'u'"):
        _builder(tokenizer, max_completion_length="3").human_completion_ids(RECORD)
