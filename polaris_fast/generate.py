"""Write stories with a trained model: `polaris generate`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from .config import Config
from .device import choose_device
from .groups import row_seed
from .model.load import load_causal_lm, quiet_transformers
from .prompts import PromptBuilder, load_tokenizer, stop_ids_of
from .rollout import Completion, RolloutRequest, SamplingParams
from .rollout.hf import HFEngine
from .types import FinishReason, StoryRecord, UserError

_TOKENS_PER_WORD = 4  # room enough for small vocabularies; a story ends by its own token
_LEAST_TOKENS = 64
_TOKENS_WITHOUT_LENGTH = 1024


def generate_stories(
    model_path: str,
    prompt: str,
    *,
    words: int | None = None,
    num: int = 1,
    seed: int = 0,
    temperature: float | None = None,
    max_tokens: int | None = None,
    config: Config | None = None,
    on_token: Callable[[int], None] | None = None,
) -> list[str]:
    """Stories for one prompt, with the chat format and length sentence of training.

    One that is cut off at the limit is told of on stderr.

    Args:
        model_path: folder or hub id of a causal LM.
        prompt: what the story is about.
        words: length to ask for; None: the prompt is used as it is.
        num: stories to write.
        seed: of the sampling; equal seeds write equal stories.
        temperature: None: as configured.
        max_tokens: thinking included; None: by `words`, else the configured limit.
        config: settings of the sampling and the prompt; None: those of the run that the model
            lies in, else the paper's.
        on_token: called after each decode step with the number of stories still being written.

    Raises:
        UserError: no such model, or a setting out of range.
    """
    for name, value in (("--words", words), ("--num", num), ("--max-tokens", max_tokens)):
        if value is not None and value < 1:
            raise UserError(f"{name}: must be at least 1, got {value}")
    if temperature is not None and not temperature > 0:
        raise UserError(f"--temperature: must be above 0, got {temperature}; try 0.1")
    quiet_transformers()
    config = config or Config()
    # the run's own `device` is of the machine that trained it
    device = choose_device(config.model_copy(update={"device": "auto"}))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = load_causal_lm(model_path, dtype=dtype, device=device)
    limit = max_tokens or token_limit(words, config)
    config = config.model_copy(
        update={
            "max_completion_length": limit,
            "max_prompt_length": 1 << 20,
            "temperature": config.temperature if temperature is None else temperature,
        }
    )
    builder = PromptBuilder(load_tokenizer(model_path), config, stop_ids_of(model))
    record = StoryRecord(uid="prompt", prompt=prompt.strip(), target_word_count=words or 1)
    prompt_ids = tuple(builder.prompt_ids(record) if words else builder.bare_prompt_ids(prompt))
    stories: list[str] = [""] * num

    def finish(index: int, completion: Completion) -> None:
        stories[index] = builder.decode(completion.completion_ids)[1]
        if completion.finish_reason is FinishReason.LENGTH:
            which = f"story {index + 1}" if num > 1 else "the story"
            place = "" if stories[index] else " before it began"
            print(
                f"note: {which} was cut off at {limit} tokens{place}; --max-tokens gives it more",
                file=sys.stderr,
            )

    HFEngine(model, config.rollout.max_batch_size).generate(
        [RolloutRequest(prompt_ids, row_seed(seed, f"generate/{i}")) for i in range(num)],
        SamplingParams.from_config(config, builder.stop_ids),
        finish,
        on_token,
    )
    return stories


def token_limit(words: int | None, config: Config) -> int:
    """Room for a story of so many words, and as much again for thinking, where the model thinks.

    Thinking has no length of its own: a thinking model has at least the configured limit, too.
    """
    configured = config.max_completion_length or _TOKENS_WITHOUT_LENGTH
    if not words:
        return configured
    room = max(_LEAST_TOKENS, words * _TOKENS_PER_WORD)
    return max(configured, 2 * room) if config.data.thinking else room
