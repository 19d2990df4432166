"""The embedded model: a tiny Qwen3.5 and its tokenizer, built and warm-started on the spot.

Written as an ordinary Hugging Face folder, so that training then loads it like any other model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from .config import Config
from .data import load_samples
from .groups import human_row
from .model.load import prepare_model
from .model.logits import logit_options
from .model.packed import packed_hidden_states
from .model.tiny import tiny_model
from .packing import pack_rows
from .prompts import PromptBuilder
from .types import Row, RowKind, StoryRecord

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
# ChatML in Qwen's manner: without thinking, an empty thought is already in the prompt.
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<|im_start|>assistant\\n<think>\\n' }}"
    "{%- if not enable_thinking -%}{{ '\\n</think>\\n\\n' }}{%- endif -%}"
    "{%- endif -%}"
)


def build_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen's special tokens; digits are tokens of their own."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def embedded_tokenizer(config: Config, records: Sequence[StoryRecord]) -> PreTrainedTokenizerFast:
    """The embedded model's tokenizer: of the training records and the longer sample stories.

    Held-out records are in neither.
    """
    texts = [*records, *load_samples("stories")]
    corpus = [text for r in texts for text in (r.prompt, r.story or "")]
    corpus += [config.data.length_sentence.format(words=n) for n in range(10, 100)]
    return build_tokenizer(corpus, config.embedded.vocab_size)


def build_embedded(
    folder: Path,
    config: Config,
    builder: PromptBuilder,
    records: Sequence[StoryRecord],
    on_step: Callable[[int, float], None],
) -> None:
    """Build, warm-start and save model and tokenizer into `folder`.

    Args:
        folder: new folder for an ordinary Hugging Face checkpoint.
        config: the run's configuration (`embedded`, `seed`).
        builder: renders prompts with the `embedded_tokenizer`.
        records: the training records; held-out ones must not be among them.
        on_step: called with (step, loss) after each warm-start step.
    """
    tokenizer = builder.tokenizer
    model: Any = tiny_model(
        "qwen3_5",
        vocab_size=len(tokenizer),
        hidden_size=config.embedded.hidden_size,
        num_layers=config.embedded.num_hidden_layers,
        eos_token_id=tokenizer.eos_token_id,
        seed=config.seed,
    )
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
    )
    model = prepare_model(model)
    for step, loss in _warm_start(model, builder, records, config):
        on_step(step, loss)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _warm_start(
    model: Any, builder: PromptBuilder, records: Sequence[StoryRecord], config: Config
) -> Iterator[tuple[int, float]]:
    """Supervised steps on the records' own stories: loss is the mean of -log p per token."""
    settings = config.embedded
    rows = [_story_row(r, builder) for r in records if r.story is not None]
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.warm_start_learning_rate, weight_decay=0.0
    )
    model.train()
    for step in range(settings.warm_start_steps):
        chosen = torch.randperm(len(rows), generator=generator)[: settings.warm_start_batch_size]
        batch = pack_rows([rows[i] for i in chosen.tolist()], model.device)
        hidden = packed_hidden_states(model, batch)[batch.logit_positions]
        options = logit_options(model.config)
        loss = -model.lm_head.logps(hidden, targets=batch.targets, **options).logps.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        decay = 0.5 * (1 + math.cos(math.pi * step / settings.warm_start_steps))
        optimizer.param_groups[0]["lr"] = settings.warm_start_learning_rate * max(decay, 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step + 1, float(loss.detach())


def _story_row(record: StoryRecord, builder: PromptBuilder) -> Row:
    place = Row(record.uid, 0, 0, RowKind.HUMAN, record, builder.prompt_ids(record))
    return human_row(record, builder, place)
