"""Settings that are possible and do not do what they seem to, with the data there is."""

from __future__ import annotations

from collections.abc import Sequence

from .config import Config
from .types import StoryRecord


def idle_settings(config: Config, records: Sequence[StoryRecord], num_held_out: int) -> list[str]:
    """One line each, naming the keys and the remedy.

    Args:
        records: those of training.
        num_held_out: prompts to evaluate on.
    """
    return [*_evaluations(config, num_held_out), *_reward(config, records)]


def _evaluations(config: Config, num_held_out: int) -> list[str]:
    keys = [key for key in ("eval_on_start", "eval_on_end") if getattr(config, key)]
    if not keys or num_held_out:
        return []
    return [
        f"{' and '.join(keys)}: there are no held-out prompts to evaluate on; set "
        "data.eval_fraction or data.eval_path"
    ]


def _reward(config: Config, records: Sequence[StoryRecord]) -> list[str]:
    """The paper's limits are for stories of thousands of words."""
    reward, found = config.reward, []
    if reward.function is not None:
        return []
    limits = {"blank_min_words": "a story of that length counts as blank"}
    if reward.length_reward == "band":
        limits["min_target_words"] = "the length asked for is not the length rewarded"
    for key, effect in limits.items():
        limit = getattr(reward, key)
        below = sum(record.target_word_count < limit for record in records)
        if 2 * below > len(records):
            found.append(
                f"reward.{key} ({limit}): {below} of {len(records)} records ask for fewer words, "
                f"and {effect}; set it below the shortest length that is asked for"
            )
    return found
