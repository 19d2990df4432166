"""Row lengths of a step, where no run has recorded them: the recipe's mix, drawn from a seed.

Without data at hand target words are log-normal with median 2,400 and sigma .6, cut to [min, max]
of `data` or to 1,000-12,000. A story hits its target within 10 % (sigma), a word is 1.35
tokens, and thinking, where it is on, adds 600 tokens (sigma 40 %). All of this is an assumption;
`--lengths` replaces it by recorded lengths.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..config import Config
from ..types import UserError

TOKENS_PER_WORD = 1.35
_MEDIAN_WORDS, _WORDS_SIGMA = 2_400, 0.6
_MIN_WORDS, _MAX_WORDS = 1_000, 12_000
_HIT_SIGMA = 0.10
THINKING_TOKENS, _THINKING_SIGMA = 600, 0.4


def draw_steps(
    config: Config, num_steps: int, *, targets: Sequence[int] | None = None, seed: int = 0
) -> list[list[list[int]]]:
    """Completion tokens of each row of each group of each step; rows of a group share a target.

    Args:
        targets: target words of the data's records; None: the recipe's mix.
    """
    rng = np.random.default_rng(seed)
    low = config.data.min_target_words or _MIN_WORDS
    high = max(config.data.max_target_words or _MAX_WORDS, low)
    limit = config.max_completion_length or 0
    shape = (num_steps, config.prompts_per_step, config.num_generations)
    if targets is None:
        words = _MEDIAN_WORDS * np.exp(_WORDS_SIGMA * rng.standard_normal(shape[:2]))
        words = np.clip(words, low, high)[..., None]
    else:
        words = rng.choice(np.asarray(targets, dtype=float), (*shape[:2], 1))
    tokens = words * TOKENS_PER_WORD * np.exp(_HIT_SIGMA * rng.standard_normal(shape))
    if config.data.thinking:
        tokens += THINKING_TOKENS * np.exp(_THINKING_SIGMA * rng.standard_normal(shape))
    steps: list[list[list[int]]] = np.clip(tokens, 1, limit).astype(int).tolist()
    return steps


def story_tokens(config: Config, lengths: Sequence[int]) -> int:
    """What the judge reads of rows of that many completion tokens: all but the thinking.

    The thinking is the mean of what `draw_steps` adds, for recorded lengths too.
    """
    mean = THINKING_TOKENS * math.exp(_THINKING_SIGMA**2 / 2) if config.data.thinking else 0.0
    return int(sum(max(0.0, n - mean) for n in lengths))


def recorded_steps(path: str, config: Config, num_steps: int) -> list[list[list[int]]]:
    """The same, drawn from the completion lengths of a file.

    Args:
        path: JSON list of completion lengths in tokens.

    Raises:
        UserError: the file cannot be read or holds anything else.
    """
    try:
        lengths = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--lengths: cannot read {path!r} ({error}); give a JSON list") from error
    if (
        not isinstance(lengths, list)
        or not lengths
        or not all(isinstance(n, int) and n > 0 for n in lengths)
    ):
        raise UserError(f"--lengths: {path!r} must be a JSON list of token counts, all positive")
    shape = (num_steps, config.prompts_per_step, config.num_generations)
    drawn = np.random.default_rng(0).choice(np.array(lengths), shape)
    steps: list[list[list[int]]] = drawn.clip(1, config.max_completion_length).tolist()
    return steps
