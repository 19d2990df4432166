"""Settings that are possible and do not do what they seem to, with the data there is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from urllib.parse import urlsplit

from .config import Config
from .judge_presets import LOOPBACK
from .types import StoryRecord, UserError


def idle_settings(config: Config, records: Sequence[StoryRecord], num_held_out: int) -> list[str]:
    """One line each, naming the keys and the remedy.

    Args:
        records: those of training.
        num_held_out: prompts to evaluate on.
    """
    return [
        *_data(config, len(records)),
        *_evaluations(config, num_held_out),
        *_reward(config, records),
    ]


def check_paid_data(config: Config) -> None:
    """A path that was forgotten must not cost money; a run that is resumed has had its say.

    Raises:
        UserError: a paid judge is to score a model of the user's own on the bundled stories.
    """
    if _trains_on_samples(config) and _pays(config) and config.resume_from_checkpoint is None:
        raise UserError(
            "data.path (null): a paid judge (judge.base_url) would score stories for the bundled "
            "demo prompts; give your own stories, or set judge.base_url to null for a trial"
        )


def _trains_on_samples(config: Config) -> bool:
    return config.model_name_or_path is not None and config.data.path is None


def _pays(config: Config) -> bool:
    """A price, or a key that is sent, to another machine."""
    judge = config.judge
    if judge.base_url is None or config.reward.function is not None:
        return False
    if (urlsplit(judge.base_url).hostname or "").lower() in LOOPBACK:
        return False
    return bool(judge.price_output or os.environ.get(judge.api_key_env, "").strip())


def _data(config: Config, num_records: int) -> list[str]:
    if not _trains_on_samples(config):
        return []
    return [
        f"data.path (null): {config.model_name_or_path} trains on the {num_records} bundled demo "
        "stories of 20 to 60 words; give your own stories"
    ]


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
