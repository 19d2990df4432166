"""The whole configuration, and the rules that tie its sections together."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self, get_type_hints

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from polaris_kernels import LossSpec

from .data import DataConfig, EmbeddedConfig
from .judge import JudgeConfig
from .reward import HRIConfig, RewardConfig
from .rollout import RolloutConfig
from .section import Section, tracker_list
from .training import (
    AlarmConfig,
    EngineConfig,
    GuardConfig,
    LoraConfig,
    PackingConfig,
    ProfileConfig,
    SFTConfig,
)

_MIN_COMPLETION_LENGTH = 256  # tokens, when the limit is taken from the data


class Config(Section):
    """Everything a run needs; the resolved copy is written beside its results."""

    # model
    model_name_or_path: str | None = None
    """Folder or hub id of a Hugging Face causal LM; null: the embedded tiny model."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Parameter and activation type."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU when there is one."""
    gradient_checkpointing: Literal[False, True, "selective"] = False
    """Recompute activations in backward: all but each layer's input (true), or all but the results
    of matrix products and attention (`selective`)."""
    offload_activations: bool = False
    """What whole checkpointing keeps, each layer's input, waits for backward in CPU memory."""
    mlp_tile_tokens: int = Field(0, ge=0)
    """Tokens that an MLP takes at a time, its wide activations made again in backward; 0: all,
    as ZeRO-3 needs it."""
    liger_kernels: bool = False
    """Norms, MLP gates and (Qwen3, Llama) rotary embedding by Liger's kernels; GPUs only."""
    logits_dtype: Literal["fp32", "bf16"] = "fp32"
    """Rounding of the logits, to match the rollout engine's."""
    logits_chunk_mib: int | None = Field(None, ge=1)
    """Logits that exist at a time, in MiB; null: twice the head's weight gradient in fp32, at least
    256, at most what the head itself chooses (512 on a CPU, 2,048 on a GPU)."""

    # run
    output_dir: str | None = None
    """Folder of the run; null: runs/<date and time>."""
    seed: int = Field(0, ge=0)
    """Seed of data order, sampling and initialisation."""
    deterministic: bool | None = None
    """Groups train in a fixed order and resume is bitwise; null: on for the CPU."""
    max_steps: int = Field(-1, ge=-1)
    """Steps of rollouts, at least 1; -1: `num_train_epochs` decide."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the prompts when `max_steps` is -1."""

    # group sampling
    prompts_per_step: int = Field(8, ge=1)
    """Prompts (groups) in one step."""
    num_generations: int = Field(6, ge=2)
    """Rows of a group, the human row included."""
    num_iterations: int = Field(1, ge=1)
    """Updates on each batch of rollouts."""
    max_prompt_length: int = Field(256, ge=1)
    """Prompt tokens at most; a longer prompt is an error at start-up."""
    max_completion_length: int | None = Field(8192, ge=1)
    """Completion tokens at most, thinking included; null: twice the longest human story's, and
    `packing.max_tokens_per_microbatch` grows to hold such a row."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; log-probs are taken at it too."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus of the sampling."""
    top_k: int = Field(20, ge=0)
    """Candidates of the sampling; 0: all."""
    repetition_penalty: float = Field(1.10, gt=0)
    """Penalty on tokens already present, of the sampling only."""
    zero_spread_resample_rounds: int = Field(0, ge=0)
    """How often groups without spread are replaced by new prompts within a step."""

    # optimizer
    optim: Literal["adamw_torch", "adamw_8bit"] = "adamw_torch"
    """AdamW by torch, or by bitsandbytes with both moments in 8 bits."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    """Schedule, by transformers; `constant` takes no warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear learning-rate warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW beta 1."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW beta 2."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """AdamW epsilon."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient norm to clip to."""

    # loss
    loss_type: str = "dapo"
    """Loss of `polaris_kernels` (dapo: token mean over the global batch)."""
    epsilon: float = Field(0.2, ge=0)
    """Lower clip of the ratio."""
    epsilon_high: float = Field(0.28, ge=0)
    """Upper clip of the ratio; for cispo the cap of the ratio itself, such as 5."""
    delta: float | None = Field(None, gt=1)
    """Two-sided clip: cap of the ratio where the advantage is negative; null: none."""
    top_entropy_quantile: float = Field(1.0, ge=0, le=1)
    """Share of a micro-batch's tokens, those of highest entropy, that carry policy loss; 1: all."""
    loss_options: dict[str, float | str | None] = Field(default_factory=dict)
    """Further fields of `polaris_kernels.LossSpec`, such as {dro_beta: 0.2}."""
    beta: float = Field(0.0, ge=0)
    """KL coefficient against the starting model; 0 loads no reference."""
    kl_estimator: Literal["k1", "abs", "k2", "k3", "k1+", "abs+", "k3+"] = "k3"
    """Estimator of the KL term; a `+` keeps its value and takes the gradient of k2."""
    kl_importance_correction: bool = False
    """Multiply the KL term by the ratio, gradient included."""
    is_correction: Literal[
        "none",
        "token_truncate",
        "token_mask",
        "sequence_truncate",
        "sequence_mask",
        "geometric_truncate",
        "geometric_mask",
    ] = "none"
    """Weight by trainer / rollout engine probability, of a token or a row's geometric mean (a
    row's product, `sequence_*`, is refused); outside is_floor to is_cap clamped (truncate) or 0
    (mask). Human rows weigh 1."""
    is_cap: float | None = Field(2.0, gt=0)
    """Largest such weight; null: no limit."""
    is_floor: float | None = Field(None, ge=0)
    """Smallest such weight; null: no limit."""
    off_policy_mask_threshold: float | None = None
    """Drop rows of negative advantage whose mean(rollout_logps - logps) is above; null: keep."""
    entropy_coef: float = 0.0
    """Coefficient of the entropy bonus."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What divides centred rewards: the group's std, the batch's, or nothing (dr_grpo)."""

    # saving and reporting
    save_steps: int = Field(5, ge=0)
    """Steps between checkpoints; 0: only the last."""
    save_total_limit: int | None = Field(None, ge=1)
    """Checkpoints kept; null: all."""
    resume_from_checkpoint: str | None = None
    """A checkpoint folder, a run folder (its newest), or null."""
    eval_on_start: bool = False
    """Evaluate the held-out prompts before the first step."""
    eval_steps: int = Field(0, ge=0)
    """Evaluate the held-out prompts after every so many steps, too; 0: never."""
    metric_for_best_model: str | None = None
    """Metric of the evaluation, such as eval/reward, by which the best checkpoint is kept and
    linked as `best`; null: none is."""
    greater_is_better: bool = True
    """Whether more of that metric is better."""
    eval_on_end: bool = False
    """Evaluate the held-out prompts after the last step."""
    num_eval_generations: int = Field(4, ge=1)
    """Stories written for each held-out prompt."""
    eval_temperature: float | None = Field(None, gt=0)
    """Sampling temperature of the evaluation; null: `temperature`."""
    report_to: Annotated[
        list[Literal["tensorboard", "wandb", "trackio"]], BeforeValidator(tracker_list)
    ] = Field(default_factory=list)
    """Trackers besides metrics.jsonl."""
    run_name: str | None = None
    """Name shown by trackers and the report."""
    progress: bool = True
    """Live terminal view; plain lines when the output is no terminal."""

    data: DataConfig = DataConfig()
    embedded: EmbeddedConfig = EmbeddedConfig()
    rollout: RolloutConfig = RolloutConfig()
    judge: JudgeConfig = JudgeConfig()
    reward: RewardConfig = RewardConfig()
    hri: HRIConfig = HRIConfig()
    sft: SFTConfig = SFTConfig()
    packing: PackingConfig = PackingConfig()
    engine: EngineConfig = EngineConfig()
    lora: LoraConfig = LoraConfig()
    guard: GuardConfig = GuardConfig()
    profile: ProfileConfig = ProfileConfig()
    alarms: AlarmConfig = AlarmConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        need = 4 if self.hri.mode != "off" else 2
        if self.num_generations < need:
            raise ValueError(
                f"num_generations must be at least {need} with hri.mode={self.hri.mode} (three "
                f"policy rows and the human row make a spread), got {self.num_generations}; raise "
                "num_generations or set hri.mode=off"
            )
        longest = self.max_prompt_length + (self.max_completion_length or 0)
        if longest > self.packing.max_tokens_per_microbatch:
            raise ValueError(
                f"packing.max_tokens_per_microbatch ({self.packing.max_tokens_per_microbatch}) "
                f"must hold the longest row, max_prompt_length + max_completion_length = {longest};"
                " raise it or lower one of them"
            )
        if self.offload_activations and self.gradient_checkpointing is not True:
            raise ValueError(
                "offload_activations moves what whole checkpointing keeps, but "
                f"gradient_checkpointing is {self.gradient_checkpointing}; set it to true, or "
                "offload_activations to false"
            )
        if self.mlp_tile_tokens and self.gradient_checkpointing == "selective":
            raise ValueError(
                f"mlp_tile_tokens ({self.mlp_tile_tokens}) makes an MLP's products again, which "
                "gradient_checkpointing selective keeps; set mlp_tile_tokens to 0, or "
                "gradient_checkpointing to true"
            )
        if self.liger_kernels and self.device == "cpu":
            raise ValueError(
                "liger_kernels: Liger's kernels run on GPUs, but device is cpu; set liger_kernels "
                "to false, or device to auto or cuda"
            )
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) has no effect with lr_scheduler_type constant;"
                " set lr_scheduler_type to constant_with_warmup, or warmup_steps to 0"
            )
        self._check_optimizer()
        if self.max_steps == 0:
            raise ValueError("max_steps must be -1 or at least 1, got 0")
        if self.judge.canary_steps and self.reward.function is not None:
            raise ValueError(
                f"judge.canary_steps ({self.judge.canary_steps}) watches the judge, but "
                f"reward.function ({self.reward.function}) takes its place; set canary_steps to 0"
            )
        self._check_judge()
        self._check_shards()
        self._check_staleness()
        self._check_loss()
        return self

    def _check_judge(self) -> None:
        """What a judge elsewhere is told means nothing to the local one, which would judge."""
        if self.judge.base_url is not None or self.reward.function is not None:
            return
        local = JudgeConfig.model_fields["model"].default
        if self.judge.model != local:
            raise ValueError(
                f"judge.model ({self.judge.model}) needs judge.base_url: without an address the "
                f"local heuristic judges; set judge.base_url, or judge.model to {local}"
            )
        if self.judge.preset not in ("auto", None):
            raise ValueError(
                f"judge.preset ({self.judge.preset}) needs judge.base_url: without an address the "
                "local heuristic judges; set judge.base_url, or judge.preset to auto"
            )

    def _check_optimizer(self) -> None:
        if self.optim != "adamw_8bit":
            return
        if self.engine.kind == "deepspeed":
            raise ValueError(
                "optim (adamw_8bit): DeepSpeed cuts the optimizer's state into shards of fp32; set "
                "optim to adamw_torch (with engine.offload_optimizer for the same end), or "
                "engine.kind to replicated"
            )
        if self.engine.offload_optimizer:
            raise ValueError(
                "optim (adamw_8bit) makes the moments small where they are, "
                "engine.offload_optimizer moves them away; set optim to adamw_torch, or "
                "engine.offload_optimizer to false"
            )

    def _check_shards(self) -> None:
        if self.engine.kind != "deepspeed":
            return
        if self.engine.zero_stage == 1 and self.dtype == "bfloat16":
            raise ValueError(
                "engine.zero_stage 1 with dtype bfloat16: DeepSpeed then has an optimizer that "
                "cannot refuse an update or scale one; set engine.zero_stage to 2, which needs "
                "less memory, or dtype to float32"
            )
        if self.engine.zero_stage == 3 and self.rollout.engine == "vllm":
            raise ValueError(
                "rollout.engine vllm is sent whole weights by the first rank, which "
                "engine.zero_stage 3 keeps in shards; set engine.zero_stage to 2 or "
                "rollout.engine to hf"
            )
        if self.engine.zero_stage == 3 and self.mlp_tile_tokens:
            # ranks of other token counts would gather an MLP's weights another number of times
            raise ValueError(
                f"mlp_tile_tokens ({self.mlp_tile_tokens}) cuts each rank's tokens into tiles of "
                "its own, and all ranks must gather the weights of engine.zero_stage 3 equally "
                "often; set mlp_tile_tokens to 0, or engine.zero_stage to 2"
            )

    def _check_staleness(self) -> None:
        stale = f"rollout.max_staleness ({self.rollout.max_staleness})"
        if self.rollout.max_staleness == 0:
            return
        if self.rollout.engine == "hf":
            raise ValueError(
                f"{stale}: rollout.engine hf writes with the weights that train, so it cannot "
                "write ahead; set rollout.engine to vllm, or max_staleness to 0"
            )
        if self.rollout.vllm.placement == "colocated":
            raise ValueError(
                f"{stale}: colocated servers sleep while their GPU trains; set "
                "rollout.vllm.placement to split, or max_staleness to 0"
            )
        if self.zero_spread_resample_rounds:
            raise ValueError(
                f"{stale}: batches are written ahead, so none can ask for more prompts; set "
                f"zero_spread_resample_rounds ({self.zero_spread_resample_rounds}) to 0"
            )
        if self.eval_steps:
            raise ValueError(
                f"{stale}: servers that write ahead cannot write held-out stories in between; set "
                f"eval_steps ({self.eval_steps}) to 0, or max_staleness to 0"
            )
        if self.is_correction == "none":
            raise ValueError(
                f"{stale}: rows of older weights need a correction; set is_correction to "
                "token_truncate, token_mask, geometric_truncate or geometric_mask"
            )

    def _check_loss(self) -> None:
        if self.is_correction.startswith("sequence"):
            raise ValueError(
                f"is_correction ({self.is_correction}) multiplies the ratios of all tokens of a "
                "story, thousands of them, which overflows or vanishes; set it to "
                "geometric_truncate or geometric_mask (their geometric mean), or to token_truncate "
                "or token_mask"
            )
        own = {field.name for field in fields(LossSpec)}
        for name in self.loss_options:
            if name in type(self).model_fields or name == "human_ratio":
                key = "hri.mode" if name == "human_ratio" else name
                raise ValueError(f"loss_options: {name} belongs to the key {key}; set it there")
            if name not in own:
                near = get_close_matches(name, own, n=1, cutoff=0.0)[0]
                raise ValueError(f"loss_options: unknown option {name!r}; did you mean {near!r}?")
        filtered = self.top_p < 1 or self.top_k > 0 or self.repetition_penalty != 1
        if self.needs_rollout_logps and self.rollout.engine == "vllm" and filtered:
            if self.temperature != 1:
                raise ValueError(
                    f"is_correction ({self.is_correction}) and off_policy_mask_threshold "
                    f"({self.off_policy_mask_threshold}) need the engine's log-probs over the full "
                    f"vocabulary, which vLLM has none of at temperature={self.temperature} with "
                    f"top_p={self.top_p}, top_k={self.top_k}, repetition_penalty="
                    f"{self.repetition_penalty}; set temperature to 1, or these three to 1, 0 and "
                    "1, or the first two to none and null"
                )
        # Its own checks name field, value and remedy; a limit left to the data is settled later.
        self.with_room_for(0).loss_spec()

    @property
    def needs_rollout_logps(self) -> bool:
        """True when the loss weighs or drops tokens by what the rollout engine gave them."""
        return self.is_correction != "none" or self.off_policy_mask_threshold is not None

    def with_room_for(self, longest_completion: int) -> Config:
        """This configuration with `max_completion_length: null` resolved; else itself.

        Args:
            longest_completion: tokens of the longest human story.
        """
        if self.max_completion_length is not None:
            return self
        limit = max(_MIN_COMPLETION_LENGTH, 2 * longest_completion)
        budget = max(self.packing.max_tokens_per_microbatch, self.max_prompt_length + limit)
        packing = self.packing.model_copy(update={"max_tokens_per_microbatch": budget})
        return self.model_copy(update={"max_completion_length": limit, "packing": packing})

    def loss_spec(self) -> LossSpec:
        """The run's loss in the kernels' terms."""
        return LossSpec(
            loss_type=self.loss_type,
            epsilon=self.epsilon,
            epsilon_high=self.epsilon_high,
            beta=self.beta,
            kl_estimator=self.kl_estimator,
            kl_importance_correction=self.kl_importance_correction,
            entropy_coef=self.entropy_coef,
            delta=self.delta,
            top_entropy_quantile=self.top_entropy_quantile,
            is_correction=self.is_correction,
            is_cap=self.is_cap,
            is_floor=self.is_floor,
            off_policy_mask_threshold=self.off_policy_mask_threshold,
            max_completion_length=self.max_completion_length,
            human_ratio="luffy" if self.hri.mode == "luffy" else "same",
            **{name: _typed(name, value) for name, value in self.loss_options.items()},
        )


def _typed(name: str, value: object) -> Any:
    """A loss option as `LossSpec` wants it; YAML reads 2e-4 as text.

    Raises:
        ValueError: names the option, the value and what it must be.
    """
    kind = get_type_hints(LossSpec)[name]
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        wanted = getattr(kind, "__name__", str(kind))
        raise ValueError(f"loss_options.{name}: {value!r} is no {wanted}; give one") from error
