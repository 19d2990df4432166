"""Rows of the recipe's length mix, scaled down so that a CPU can train on them.

Targets are spread evenly over the paper's buckets in its own shares (1-4K words 90, 4-8K 60, 8-12K
30 of 180 prompts); each of a prompt's rows misses its target by 10 % (sigma), a word is 1.35
tokens. Row counts are those of one training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polaris_fast.plan.lengths import TOKENS_PER_WORD

BUCKETS = ((1_000, 4_000, 6), (4_000, 8_000, 4), (8_000, 12_000, 2))  # words, words, prompts
ROWS_PER_PROMPT = 4
PROMPT_TOKENS = 256  # before scaling, the recipe's limit
_HIT_SIGMA = 0.10
_MAX_WORDS = 12_000


@dataclass(frozen=True)
class WeightedRow:
    """A row and what its summed log-prob counts for, as an advantage would."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    weight: float

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def recipe_rows(scale: float, vocab_size: int, *, seed: int = 0) -> list[WeightedRow]:
    """The rows of a step with all token counts divided by `scale`, in random order.

    Args:
        scale: 1 for the recipe's own lengths.
        vocab_size: of the random tokens.
        seed: of lengths, tokens, weights and order.
    """
    rng = np.random.default_rng(seed)
    targets = np.concatenate(
        [low + (high - low) * (np.arange(n) + 0.5) / n for low, high, n in BUCKETS]
    )
    words = np.repeat(targets, ROWS_PER_PROMPT)
    words = np.minimum(words * np.exp(_HIT_SIGMA * rng.standard_normal(len(words))), _MAX_WORDS)
    tokens = np.maximum(1, words * TOKENS_PER_WORD / scale).astype(int)
    prompt = max(1, round(PROMPT_TOKENS / scale))
    return [
        WeightedRow(
            rng.integers(vocab_size, size=prompt).tolist(),
            rng.integers(vocab_size, size=tokens[i]).tolist(),
            float(rng.standard_normal()),
        )
        for i in rng.permutation(len(tokens))
    ]
