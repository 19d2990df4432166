"""One step's rows, fixed beforehand, so that two trainers write and train the very same tokens.

Both sides compute and sample at every token as they always do. Before a token is drawn, the logit
of the row's next token is raised so far that any sampler takes it: one addition for each row in
flight, the same on both sides. A row's last token is the end-of-turn token.

Lengths are the recipe's mix (`packing_rows`), scaled down. B rows in flight . L longest . V vocab.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from polaris_fast.data import load_samples
from polaris_fast.embedded import build_tokenizer
from polaris_fast.model.tiny import Family, tiny_model
from polaris_fast.plan.lengths import TOKENS_PER_WORD

PROMPTS_BY_BUCKET = ((1_000, 4_000, 3), (4_000, 8_000, 2), (8_000, 12_000, 1))  # the paper's shares
GROUP = 6
# Short prompts: the recipe's are 4 % of a row.
_THINGS = ("sea", "dog", "rain", "bell", "road", "lamp")
_HIT_SIGMA = 0.10  # rows miss their target by this much
_MAX_WORDS = 12_000
_WORDS_IN_TOKENIZER = 1_024
_RAISE = 1e4  # beyond any logit: exp(-1e4) is 0 in every dtype


@dataclass(frozen=True)
class Setting:
    """A model and the scale of the lengths."""

    family: Family
    vocab_size: int
    hidden_size: int
    scale: float  # all lengths are divided by it

    @property
    def name(self) -> str:
        return f"{self.family}, V {self.vocab_size:,}"


@dataclass
class Script:
    """What every row of a step will be, and the texts of its prompts."""

    prompts: list[str]  # as a user writes them
    targets: list[int]  # words
    completions: list[list[list[int]]]  # of every prompt, GROUP rows, end of turn included
    # a prompt's token ids -> its index; filled by who renders prompts
    by_prompt: dict[tuple[int, ...], int] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return GROUP * len(self.prompts)

    def table(self, prompt_ids: Sequence[tuple[int, ...]]) -> Tensor:
        """(B, L) the token of every row at every place; 0 past its end.

        Args:
            prompt_ids: of every row; rows of a prompt take its completions in their order.
        """
        used = dict.fromkeys(self.by_prompt, 0)
        rows = []
        for prompt in prompt_ids:
            rows.append(self.completions[self.by_prompt[prompt]][used[prompt]])
            used[prompt] += 1
        found = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for i, row in enumerate(rows):
            found[i, : len(row)] = torch.tensor(row)
        return found


def raise_next(logits: Tensor, next_ids: Tensor) -> None:
    """Make next_ids (B,) what any sampler draws from logits (B, V); in place."""
    logits.scatter_add_(1, next_ids[:, None], torch.full_like(logits[:, :1], _RAISE))


def make_script(setting: Setting, tokenizer: Any, *, seed: int = 0) -> Script:
    """Prompts over the paper's buckets of lengths, each with GROUP rows of random tokens."""
    rng = np.random.default_rng(seed)
    targets = np.concatenate(
        [low + (high - low) * (np.arange(n) + 0.5) / n for low, high, n in PROMPTS_BY_BUCKET]
    )
    words = targets[:, None] * np.exp(_HIT_SIGMA * rng.standard_normal((len(targets), GROUP)))
    lengths = np.minimum(words, _MAX_WORDS) * TOKENS_PER_WORD / setting.scale
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ordinary = [i for i in range(len(tokenizer)) if i not in special]
    end = tokenizer.eos_token_id
    completions = [
        [[*rng.choice(ordinary, int(n)).tolist(), end] for n in group] for group in lengths
    ]
    words_asked = [max(1, int(n / setting.scale)) for n in targets]
    return Script([f"The {thing}." for thing in _THINGS], words_asked, completions)


def write_model(folder: Path, setting: Setting) -> Any:
    """A random model with its tokenizer into `folder`; returns the tokenizer."""
    texts = [text for r in load_samples() for text in (r.prompt, r.story or "")]
    tokenizer = build_tokenizer(texts, _WORDS_IN_TOKENIZER)
    tokenizer.chat_template = None  # it would be longer than many a completion
    model: Any = tiny_model(
        setting.family,
        vocab_size=setting.vocab_size,
        hidden_size=setting.hidden_size,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_records(path: Path, script: Script) -> None:
    """The prompts as a file for `data.path`."""
    lines = [
        {"uid": str(i), "prompt": prompt, "target_word_count": words}
        for i, (prompt, words) in enumerate(zip(script.prompts, script.targets, strict=True))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Vowels in percent of each story's letters: rows of a group differ, at next to no cost.

    Percent, because TRL adds 1e-4 to the spread of a group and we add 1e-6.
    """
    found = []
    for story in completions:
        letters = [c for c in story.lower() if c.isalpha()]
        found.append(100 * sum(c in "aeiou" for c in letters) / max(1, len(letters)))
    return found
