"""The reward's parts and the human references."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .section import Off, Section


class RewardConfig(Section):
    """R = quality - repetition - length - blank, less injection (docs/training-runs.md)."""

    function: str | None = None
    """`package.module:callable` used instead of the judge: f(prompts, completions, **columns)."""
    length_reward: Literal["band", "ratio"] = "band"
    """`band`: the paper's penalty outside [T - lo, T + hi]; `ratio`: scale free in |ln(w / T)|."""
    length_weight: float = Field(0.8, ge=0)
    """Weight of the length penalty (`band`) or lambda of `ratio`."""
    repetition_weight: float = Field(1.5, ge=0)
    """Weight of self-repetition."""
    repetition_scope: Literal["story", "windowed_mean", "windowed_max"] = "story"
    """4-gram repetition over the story (paper), or the mean or maximum over windows of words."""
    repetition_free: float = Field(0.08, ge=0, lt=1)
    """Share of repeated 4-grams that plain prose has and that costs nothing."""
    repetition_story_weight: float = Field(0.7, ge=0)
    """Weight of repeated 4-grams beyond the free share."""
    repetition_local_weight: float = Field(0.3, ge=0)
    """Weight of 4-grams seen among the `repetition_reach` before them."""
    repetition_reach: int = Field(64, ge=1)
    """How many 4-grams back a local repetition is looked for."""
    repetition_ngram_weight: float = Field(0.8, ge=0)
    """Weight of both 4-gram terms."""
    repetition_lines_weight: float = Field(0.4, ge=0)
    """Weight of the share of repeated lines."""
    repetition_max: float = Field(1.5, gt=0)
    """Self-repetition is at most this."""
    repetition_window_words: int = Field(1000, ge=10)
    """Words in a window of `windowed_*`."""
    repetition_window_stride: int = Field(500, ge=1)
    """Words from one window to the next."""
    blank_weight: float = Field(1.0, ge=0)
    """Weight of the blank penalty."""
    injection_penalty: float = Field(0.2, ge=0)
    """Subtracted when a story speaks to its judge, besides the lower of its two scores (needs
    `judge.injection_scan`); ours: the paper has none, and `polaris_9b` sets 0."""
    min_reward: float = -2.0
    """R is clipped from below here."""
    max_reward: float = 2.0
    """R is clipped from above here."""
    word_counter: Literal["whitespace", "word_chars"] = "whitespace"
    """Words are runs of non-space, or runs of word characters (the paper's release)."""
    min_target_words: int = Field(150, ge=1)
    """T is at least this in `band` (the paper's release)."""
    band_low_fraction: float = Field(0.15, ge=0, lt=1)
    """lo = clamp(fraction * T, band_low_min, band_low_max)."""
    band_low_min: int = Field(350, ge=0)
    """Lower clamp of lo, words."""
    band_low_max: int = Field(1000, ge=0)
    """Upper clamp of lo, words."""
    band_high_fraction: float = Field(0.25, ge=0)
    """hi = clamp(fraction * T, band_high_min, band_high_max)."""
    band_high_min: int = Field(600, ge=0)
    """Lower clamp of hi, words."""
    band_high_max: int = Field(1500, ge=0)
    """Upper clamp of hi, words."""
    ratio_free: float = Field(0.10, ge=0)
    """|ln(words / T)| up to which the length score is 1."""
    ratio_zero: float = Field(0.70, gt=0)
    """|ln(words / T)| from which the length score is 0."""
    blank_min_words: int = Field(150, ge=0)
    """A story of fewer words is blank."""
    blank_min_visible: float = Field(0.10, ge=0, le=1)
    """A story with a smaller share of visible characters is blank."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_reward >= self.max_reward:
            raise ValueError(
                f"min_reward ({self.min_reward}) must be below max_reward ({self.max_reward})"
            )
        for side in ("low", "high"):
            least, most = (getattr(self, f"band_{side}_{end}") for end in ("min", "max"))
            if least > most:
                raise ValueError(
                    f"band_{side}_min ({least}) must not exceed band_{side}_max ({most})"
                )
        if self.repetition_window_stride > self.repetition_window_words:
            raise ValueError(
                f"repetition_window_stride ({self.repetition_window_stride}) must not exceed "
                f"repetition_window_words ({self.repetition_window_words}): no window would hold "
                "the words in between"
            )
        if self.ratio_free >= self.ratio_zero:
            raise ValueError(
                f"ratio_free ({self.ratio_free}) must be below ratio_zero ({self.ratio_zero})"
            )
        if self.function is not None and ":" not in self.function:
            raise ValueError(f"function must be 'package.module:callable', got {self.function!r}")
        return self


class HRIConfig(Section):
    """Human-reference injection: one row of each group is the human story (arXiv 2606.04095)."""

    mode: Annotated[Literal["off", "anchor", "luffy"], Off] = "anchor"
    """`anchor`: statistics from policy rows only (paper); `luffy`: the human row is inside the
    statistics and its ratio is p / (p + 0.1) (arXiv 2504.14945); `off`: rollouts only."""
    weight: float = Field(0.4, ge=0)
    """Weight of the human row's advantage after the ramp (`anchor`; `luffy` has none)."""
    warmup_steps: int = Field(15, ge=0)
    """Steps over which the weight rises from 0; at weight 0 the slot is one more rollout."""
    fixed_reward: float | None = None
    """Reward of every human row; null: it is judged like any other."""
    num_judge_samples: int = Field(3, ge=1)
    """Judgements of a human story, averaged and reused."""
    missing_reasoning: Literal["error", "skip", "empty"] = "error"
    """With `data.thinking`, what to do with a record that has no reasoning."""
