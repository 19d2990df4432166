"""Shorter stories first: the pool of prompts grows from the shortest targets to all of them.

Position n of the run is a function of the seed and the targets alone, as in `data.PromptOrder`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from .config import Config
from .data import PromptOrder
from .types import StoryRecord


def prompt_order(config: Config, records: Sequence[StoryRecord]) -> PromptOrder | CurriculumOrder:
    """The run's order of prompts: a curriculum where one is configured, else shuffled passes."""
    if config.data.curriculum_steps == 0:
        return PromptOrder(len(records), config.seed)
    return CurriculumOrder(
        [record.target_word_count for record in records],
        config.seed,
        num_positions=config.data.curriculum_steps * config.prompts_per_step,
        start_share=config.data.curriculum_start,
    )


class CurriculumOrder:
    """Record index by position; after the curriculum every record comes equally often.

    At position n of N_c the pool holds the shortest s + (1 - s) n / N_c of the records, where s is
    `start_share`. Drawn is a random one of those that were drawn least so far, so records that
    join late catch up, and from N_c on the order is one of shuffled passes.
    """

    def __init__(
        self, targets: Sequence[int], seed: int, *, num_positions: int, start_share: float
    ) -> None:
        """
        Args:
            targets: words asked for, of each record.
            num_positions: N_c, prompts until all records are in the pool.
            start_share: share of the records in the pool at first, in (0, 1].

        Raises:
            ValueError: no records, or a value out of range.
        """
        if not targets or num_positions < 0 or not 0 < start_share <= 1:
            raise ValueError(
                f"CurriculumOrder: {len(targets)} targets, num_positions {num_positions}, "
                f"start_share {start_share}; give records, a count of 0 or more and a share in "
                "(0, 1]"
            )
        # Ties by index, so that equal targets join in the data's order.
        self._by_length = sorted(range(len(targets)), key=lambda i: (targets[i], i))
        self._num_positions, self._start_share = num_positions, start_share
        self._random = random.Random(f"{seed}/curriculum")
        self._times = [0] * len(targets)
        self._drawn: list[int] = []

    def pool_size(self, position: int) -> int:
        """Records that may be drawn at this position."""
        total = len(self._by_length)
        if position >= self._num_positions:
            return total
        share = self._start_share + (1 - self._start_share) * position / self._num_positions
        return min(total, max(1, math.ceil(total * share)))

    def __getitem__(self, position: int) -> int:
        """Record index at this position of the run (0 is the first prompt of the first step)."""
        while len(self._drawn) <= position:
            self._drawn.append(self._draw(len(self._drawn)))
        return self._drawn[position]

    def _draw(self, position: int) -> int:
        pool = self._by_length[: self.pool_size(position)]
        least = min(self._times[i] for i in pool)
        chosen = self._random.choice([i for i in pool if self._times[i] == least])
        self._times[chosen] += 1
        return chosen
