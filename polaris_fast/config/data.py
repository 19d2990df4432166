"""Where stories come from, and the embedded model."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from .section import NotBlank, Section


class DataConfig(Section):
    """Where prompts and human stories come from."""

    path: NotBlank = None
    """JSONL or parquet file, folder of .txt/.md stories, or hub data-set id; null: the bundled
    stories of 20 to 60 words."""
    split: str = "train"
    """Split of a hub data set."""
    eval_path: NotBlank = None
    """Held-out records; null: `eval_fraction` of the records of `path`."""
    eval_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the records to hold out from training when `eval_path` is null."""
    min_target_words: int | None = Field(None, ge=1)
    """Records with a smaller target are left out."""
    max_target_words: int | None = Field(None, ge=1)
    """Records with a larger target are left out."""
    length_sentence: str = "The story should be about {words} words long."
    """Appended to the prompt that the policy sees (the judge never sees it); needs `{words}`."""
    curriculum_steps: int = Field(0, ge=0)
    """Steps over which prompts go from the shortest targets to all; 0: all from the start."""
    curriculum_start: float = Field(0.25, gt=0, le=1)
    """Share of the prompts, the shortest, that a curriculum starts with."""
    thinking: bool | None = None
    """Whether the policy thinks before it writes (`</think>` ends its thinking); null: as the data
    does, on when every human story has its reasoning."""
    after_thinking: str = "\n\n"
    """What stands between `</think>` and the story of a human row: Qwen's blank line, or the
    paper's single line feed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            tells = self.length_sentence.format(words=7) != self.length_sentence.format(words=8)
        except (LookupError, ValueError):
            tells = False
        if not tells:
            raise ValueError(
                "length_sentence must contain '{words}' and no other braces, "
                f"got {self.length_sentence!r}"
            )
        low, high = self.min_target_words, self.max_target_words
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_target_words ({low}) must not exceed max_target_words ({high})")
        return self


class EmbeddedConfig(Section):
    """The tiny Qwen3.5-architecture model built locally when `model_name_or_path` is null."""

    vocab_size: int = Field(1024, ge=300, le=65536)
    """Entries of the byte-level BPE vocabulary trained on the sample stories."""
    hidden_size: int = Field(64, ge=32, multiple_of=32)
    """Width of the residual stream."""
    num_hidden_layers: int = Field(4, ge=4, multiple_of=4)
    """Layers; of every four, three are gated-delta-net layers and one is full attention."""
    warm_start_steps: int = Field(60, ge=0)
    """Supervised steps on the sample stories before GRPO starts."""
    warm_start_learning_rate: float = Field(3e-3, gt=0)
    """Learning rate of these steps."""
    warm_start_batch_size: int = Field(16, ge=1)
    """Stories in each of these steps."""
