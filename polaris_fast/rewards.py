"""R = quality - repetition - length - blank: each term a pure function (docs/training-runs.md).

Every weight and threshold is a field of `RewardConfig`. Lengths are words, scores have no unit.
"""

from __future__ import annotations

import math

from .config import RewardConfig
from .text_stats import (
    count_words,
    duplicate_lines,
    local_repeated_share,
    ngrams,
    repeated_share,
    token_windows,
    tokenize,
    visible_share,
)
from .types import RewardParts, Scored


def compose_reward(scored: Scored, story: str, target: int, config: RewardConfig) -> RewardParts:
    """The reward of a judged story and what it is made of.

    band:  R = Q - w_rep * rep - w_len * length_penalty - w_blank * blank
    ratio: R = g * max(Q, 0) + min(Q, 0) - w_len * (1 - g) - w_rep * rep - w_blank * blank
    both less `injection_penalty` where the story speaks to its judge, and clipped to
    [min_reward, max_reward].

    Args:
        scored: a judgement that arrived; Q = `scored.quality`, finite; flags `injection:<kind>`
            say that the story speaks to its judge.
        story: the text after the thinking.
        target: words asked for, at least 1.
        config: weights and thresholds; its defaults are the paper's but for `injection_penalty`,
            which is ours and 0 in the preset `polaris_9b`.

    Raises:
        ValueError: quality is not finite or target is below 1.
    """
    if not math.isfinite(scored.quality):
        raise ValueError(
            f"compose_reward: quality must be finite, got {scored.quality}; a judgement without "
            "a number is Failed, not Scored"
        )
    words = count_words(story, config.word_counter)
    repetition = self_repetition(story, config)
    blank = blank_penalty(story, words, config)
    injection = float(scored.has_flag("injection"))
    quality = scored.quality
    if config.length_reward == "band":
        length_score = 1.0 - length_penalty_band(words, target, config)
        shaped = quality
    else:
        length_score = length_score_ratio(words, target, config)
        shaped = length_score * max(quality, 0.0) + min(quality, 0.0)
    total = (
        shaped
        - config.length_weight * (1.0 - length_score)
        - config.repetition_weight * repetition
        - config.blank_weight * blank
        - config.injection_penalty * injection
    )
    return RewardParts(
        total=clamp(total, config.min_reward, config.max_reward),
        quality=quality,
        length_score=length_score,
        self_repetition=repetition,
        blank_penalty=blank,
        words=words,
        injection=injection,
    )


def length_penalty_band(words: int, target: int, config: RewardConfig) -> float:
    """0 inside [T - lo, T + hi], rising to 1 outside; in [0, 1].

    lo and hi are clamped shares of T cut to whole words; T is at least `min_target_words`.
    """
    low, high = length_band(target, config)
    if words < low:
        return min(1.0, 1.0 - words / low)
    if words > high:
        return min(1.0, words / high - 1.0)
    return 0.0


def length_band(target: int, config: RewardConfig) -> tuple[int, int]:
    """The free band [T - lo, T + hi] in words; the lower end may be below 0 for a small T."""
    _check_target(target)
    t = max(target, config.min_target_words)
    low = clamp(config.band_low_fraction * t, config.band_low_min, config.band_low_max)
    high = clamp(config.band_high_fraction * t, config.band_high_min, config.band_high_max)
    return t - int(low), t + int(high)


def length_score_ratio(words: int, target: int, config: RewardConfig) -> float:
    """g(u) of u = |ln(words / target)|: 1 to `ratio_free`, linear to 0 at `ratio_zero`."""
    _check_target(target)
    if words <= 0:
        return 0.0
    u = abs(math.log(words / target))
    return clamp((config.ratio_zero - u) / (config.ratio_zero - config.ratio_free), 0.0, 1.0)


def self_repetition(story: str, config: RewardConfig) -> float:
    """min(1.5, .8 (.7 max(0, rep4 - .08) + .3 local4) + .4 dup_lines), in [0, 1.5].

    With a windowed `repetition_scope` the 4-gram part is the mean or the maximum over windows of
    words; repeated lines are always counted over the whole story, so that a paragraph copied from
    far away still shows. The numbers are the defaults of `RewardConfig.repetition_*`.
    """
    if config.repetition_scope == "story":
        rate = ngram_repetition(tokenize(story), config)
    else:
        rates = windowed_repetition(story, config)
        is_max = config.repetition_scope == "windowed_max"
        rate = max(rates) if is_max else sum(rates) / len(rates)
    lines = config.repetition_lines_weight * duplicate_lines(story)
    return min(config.repetition_max, config.repetition_ngram_weight * rate + lines)


def ngram_repetition(tokens: list[str], config: RewardConfig) -> float:
    """.7 max(0, rep4 - .08) + .3 local4 of one stretch of tokens."""
    grams = ngrams(tokens)
    excess = max(0.0, repeated_share(grams) - config.repetition_free)
    local = local_repeated_share(grams, config.repetition_reach)
    return config.repetition_story_weight * excess + config.repetition_local_weight * local


def windowed_repetition(story: str, config: RewardConfig) -> list[float]:
    """`ngram_repetition` of each window of words; at least one value."""
    size, stride = config.repetition_window_words, config.repetition_window_stride
    return [ngram_repetition(tokens, config) for tokens in token_windows(story, size, stride)]


def blank_penalty(story: str, words: int, config: RewardConfig) -> float:
    """1 for a story of fewer than `blank_min_words` words or hardly any visible characters."""
    blank = words < config.blank_min_words or visible_share(story) < config.blank_min_visible
    return 1.0 if blank else 0.0


def clamp(value: float, low: float, high: float) -> float:
    """`value` limited to [low, high]."""
    return max(low, min(high, value))


def _check_target(target: int) -> None:
    if target < 1:
        raise ValueError(f"rewards: target must be at least 1 word, got {target}")
