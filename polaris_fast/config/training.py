"""What trains: packing, engine, adapters, warm start, and what watches over it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .section import Off, Section


class SFTConfig(Section):
    """The supervised warm start, `polaris sft`; everything else is as in training."""

    num_epochs: float = Field(1.0, gt=0)
    """Passes over the human stories (max_steps above 0 wins)."""
    rows_per_step: int = Field(16, ge=1)
    """Stories an update."""
    learning_rate: float = Field(1e-5, gt=0)
    """In place of learning_rate; the schedule is the run's."""


class PackingConfig(Section):
    """Variable-length micro-batches."""

    max_tokens_per_microbatch: int = Field(16384, ge=16)
    """Token budget of one forward/backward."""
    attention: Literal["auto", "flash_attn", "torch_varlen", "grouped_sdpa"] = "auto"
    """Kernel of full attention; auto: of those that are right on this GPU, the fastest by a timing
    at start-up."""
    delta_net: Literal["auto", "fla", "triton", "torch"] = "auto"
    """Kernel of gated-delta-net layers, likewise; `triton` is the project's own."""


class EngineConfig(Section):
    """Who holds the weights when several ranks train."""

    kind: Literal["replicated", "deepspeed"] = "replicated"
    """`replicated`: every rank holds the whole model and optimizer; `deepspeed`: ZeRO shards."""
    zero_stage: Literal[1, 2, 3] = 2
    """What DeepSpeed shards: optimizer state (1, float32 only), also gradients (2), also weights
    (3)."""
    offload_optimizer: bool = False
    """fp32 weights, gradient sums and moments are kept, and the update is made, in CPU memory; with
    kind replicated by one process on a GPU only."""
    offload_param: bool = False
    """DeepSpeed keeps the weights in CPU memory (ZeRO-3 only)."""
    deepspeed_config: str | None = None
    """DeepSpeed JSON file whose settings win over the ones derived from this configuration."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.offload_param and self.kind != "deepspeed":
            raise ValueError(
                f"offload_param needs kind deepspeed, got {self.kind}; set kind to deepspeed and "
                "zero_stage to 3, or offload_param to false"
            )
        if self.deepspeed_config is not None and self.kind != "deepspeed":
            raise ValueError(
                f"deepspeed_config ({self.deepspeed_config}) needs kind deepspeed, got "
                f"{self.kind}; set kind to deepspeed, or deepspeed_config to null"
            )
        if self.offload_param and self.zero_stage != 3:
            raise ValueError(
                f"offload_param needs zero_stage 3, got {self.zero_stage}; set zero_stage to 3 or "
                "offload_param to false"
            )
        return self


class LoraConfig(Section):
    """Low-rank adapters in place of full fine-tuning."""

    r: int = Field(0, ge=0)
    """Rank of the adapters; 0: all weights are trained."""
    alpha: float = Field(32.0, gt=0)
    """The adapters' output is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in front of the adapters; above 0 old and new log-probs differ by its noise."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Linear layers that get an adapter: all but the head, or those of these names."""


class AlarmConfig(Section):
    """Signs of reward hacking that are looked for at every step."""

    action: Annotated[Literal["off", "warn", "stop"], Off] = "warn"
    """What an alarm does: nothing, a warning, or the end of the run after a checkpoint."""
    baseline_steps: int = Field(10, ge=1)
    """First steps of the run, whose means are what later ones are compared with."""
    patience: int = Field(5, ge=1)
    """Steps in a row that a sign must last."""
    max_repetition_rise: float = Field(0.1, ge=0)
    """Rise of self-repetition above its start."""
    max_injection: float = Field(0.05, ge=0, le=1)
    """Share of stories with text for the judge, or an end mark of their own."""
    max_reference_overlap: float = Field(0.05, ge=0, le=1)
    """Share of a story's 8-grams that its prompt's human story has."""
    max_group_similarity: float = Field(0.5, ge=0, le=1)
    """Shared 4-grams of two rollouts of one group, Jaccard."""
    max_figurative_rise: float = Field(5.0, ge=0)
    """Rise of figures of speech per 1,000 words above their start."""
    min_length_share: float = Field(0.7, gt=0, le=1)
    """Smallest share of the starting length ratio while reward or quality do not fall."""


class ProfileConfig(Section):
    """Steps to look into; each costs time and disk."""

    steps: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    """Numbers of the steps, from 1, whose trace and table of phases go to `profile/` in the run's
    folder."""


class GuardConfig(Section):
    """Refuses updates that would wreck the model."""

    max_grad_norm_ratio: float = Field(20.0, gt=1)
    """An update whose gradient norm exceeds this multiple of the running median is skipped."""
    window: int = Field(32, ge=4)
    """Updates in the running median; the guard for size starts once it is a quarter full."""
    max_consecutive_skips: int = Field(5, ge=1)
    """After so many skips in a row the run stops."""
