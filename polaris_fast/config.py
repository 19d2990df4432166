"""The run's configuration: typed and validated; `config_file` reads it.

Keys carry the names TRL and transformers use where they mean the same thing. An unknown key is an
error that names the nearest one; every range is checked before anything is loaded.
"""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from polaris_kernels import LossSpec

from .judge_presets import preset_settings, url_from_environment
from .types import UserError

# YAML 1.1 reads a bare `off` as false.
_Off = BeforeValidator(lambda value: "off" if value is False else value)
_Url = Annotated[str | None, BeforeValidator(url_from_environment)]
_MIN_COMPLETION_LENGTH = 256  # tokens, when the limit is taken from the data


def _tracker_list(value: Any) -> Any:
    """TRL's forms: one name, "none", or a list."""
    if value is None or value == "none":
        return []
    return [value] if isinstance(value, str) else value


class Section(BaseModel):
    """Base of every section: no unknown keys, docstrings under fields are their descriptions."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        frozen=True,
        coerce_numbers_to_str=True,  # --run_name 7
    )


class DataConfig(Section):
    """Where prompts and human stories come from."""

    path: str | None = None
    """JSONL or parquet file, folder of .txt/.md stories, or hub data-set id; null: the bundled
    stories of 20 to 60 words."""
    split: str = "train"
    """Split of a hub data set."""
    eval_path: str | None = None
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


class VLLMConfig(Section):
    """vLLM servers that write the rollouts when `rollout.engine` is vllm."""

    launch: bool = True
    """Start the servers with the run and stop them with it; false: `base_urls` are used."""
    base_urls: list[str] = Field(default_factory=list)
    """Servers that run already, such as http://10.0.0.2:8000; started as docs/vllm.md says."""
    num_servers: int = Field(1, ge=1)
    """Servers to launch, each with `tensor_parallel_size` GPUs."""
    gpus: list[int] = Field(default_factory=list)
    """GPUs of the launched servers in order, as in CUDA_VISIBLE_DEVICES; other ones than those of
    the ranks, but for `ipc`. Empty: no GPUs, or the trainer's."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that share one server's model."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Share of a GPU's memory that a launched server takes; null: vLLM's own."""
    cpu_kv_cache_gib: int = Field(1, ge=1)
    """Memory for keys and values of a launched server without a GPU, GiB."""
    extra_args: list[str] = Field(default_factory=list)
    """Further arguments of launched servers, such as [--enforce-eager]; they win."""
    placement: Literal["split", "colocated"] = "split"
    """`split`: servers have GPUs of their own; `colocated`: each rank launches one on its own GPU,
    which sleeps while the rank trains."""
    transfer: Literal["auto", "nccl", "ipc", "gloo"] = "auto"
    """How weights reach the servers: `nccl` to other GPUs, `ipc` to a server on the trainer's GPU,
    `gloo` between CPUs; auto: nccl with a GPU, gloo without."""
    start_timeout_s: float = Field(900.0, gt=0)
    """Limit on the start of the servers."""
    sync_timeout_s: float = Field(300.0, gt=0)
    """Limit on one update of their weights."""
    request_timeout_s: float = Field(3600.0, gt=0)
    """Limit on one completion, waiting in the server included."""
    max_attempts: int = Field(4, ge=1)
    """Tries for one completion before the run stops."""
    max_restarts: int = Field(3, ge=0)
    """How often lost servers are started again (given ones waited for, `start_timeout_s` each time)
    before the run stops."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.launch and self.base_urls:
            raise ValueError(
                f"launch is true and base_urls are given ({', '.join(self.base_urls)}); set launch "
                "to false to use these servers, or drop base_urls"
            )
        if self.transfer == "ipc" and max(self.num_servers, len(self.base_urls)) > 1:
            raise ValueError(
                "transfer ipc reaches one server, on the trainer's GPU; set num_servers to 1, or "
                "transfer to nccl"
            )
        if self.placement == "colocated":
            self._check_colocated()
        need = self.num_servers * self.tensor_parallel_size
        if self.gpus and len(self.gpus) != need:
            raise ValueError(
                f"gpus must name num_servers * tensor_parallel_size = {need} GPUs, got {self.gpus}"
            )
        return self

    def _check_colocated(self) -> None:
        one = self.num_servers == self.tensor_parallel_size == 1 and self.launch and not self.gpus
        if not one:
            raise ValueError(
                "placement colocated launches one server on each rank's own GPU: leave launch, "
                "num_servers, tensor_parallel_size and gpus as they are, or set placement to split "
                f"(got launch={self.launch}, num_servers={self.num_servers}, "
                f"tensor_parallel_size={self.tensor_parallel_size}, gpus={self.gpus})"
            )
        if self.transfer not in ("auto", "ipc"):
            raise ValueError(
                f"transfer {self.transfer} cannot reach a server on the trainer's own GPU; set it "
                "to auto with placement colocated"
            )
        if self.gpu_memory_utilization is None:
            raise ValueError(
                "placement colocated shares each GPU between trainer and server: set "
                "gpu_memory_utilization to the server's share while it writes, such as 0.3"
            )

    def gpus_of(self, number: int) -> list[int]:
        """GPUs of the launched server of this number, from 0."""
        size = self.tensor_parallel_size
        return self.gpus[number * size : (number + 1) * size]

    def transfer_on(self, device_type: str) -> str:
        """`transfer`, settled for a trainer on "cpu" or "cuda".

        Raises:
            UserError: it cannot work there.
        """
        transfer = self.transfer
        if self.placement == "colocated":
            transfer = "ipc"
        if transfer == "auto":
            transfer = "nccl" if device_type == "cuda" else "gloo"
        if transfer != "gloo" and device_type != "cuda":
            raise UserError(
                f"rollout.vllm.transfer: {transfer} needs a GPU, the trainer is on {device_type}; "
                "set it to auto"
            )
        if transfer == "nccl" and self.launch and not self.gpus:
            raise UserError(
                "rollout.vllm.gpus: name the GPUs of the launched servers, such as [1], which no "
                "rank trains on; with a single GPU set rollout.vllm.transfer to ipc and "
                "rollout.vllm.gpu_memory_utilization to the servers' share of it"
            )
        return transfer


class RolloutConfig(Section):
    """How completions are generated."""

    engine: Literal["hf", "vllm"] = "hf"
    """Rollout engine; `hf` generates with the training weights in place, `vllm` on servers."""
    max_batch_size: int = Field(64, ge=1)
    """Rows decoded together, on each vLLM server; finished rows leave the batch."""
    max_staleness: int = Field(0, ge=0)
    """Steps by which the weights that draw a token may be older than those that train on it; above
    0 later batches are written while earlier ones train (vllm; needs `is_correction`)."""

    vllm: VLLMConfig = VLLMConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.engine == "vllm" and not self.vllm.launch and not self.vllm.base_urls:
            raise ValueError(
                "vllm.launch is false and vllm.base_urls is empty; give the servers' URLs, or set "
                "vllm.launch to true"
            )
        return self


class FallbackConfig(Section):
    """Another judge for groups of which the first refuses a row; null: as the first judge's."""

    base_url: _Url = None
    """Endpoint ending in /v1, or $NAME; null: no fallback, and refused rows are left out."""
    model: str | None = None
    """Model name sent to the endpoint; needed with `base_url`."""
    api_key_env: str | None = None
    """Environment variable that holds the key; null: the usual one of a known provider, and no key
    is sent to another `base_url`."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature of the judge."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus of the judge's sampling."""
    max_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] | None = None
    """What the endpoint calls the cap."""
    response_format: Literal["json_schema", "json_object", "none"] | None = None
    """How the endpoint is asked for JSON."""
    context_length: int | None = Field(None, ge=1024)
    """Tokens that the judge's model can read and write."""
    price_input: float | None = Field(None, ge=0)
    """USD per million prompt tokens; null: unknown."""
    price_cached_input: float | None = Field(None, ge=0)
    """USD per million prompt tokens from the provider's cache; null: `price_input`."""
    price_output: float | None = Field(None, ge=0)
    """USD per million completion tokens, reasoning included."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.base_url is None) != (self.model is None):
            raise ValueError(
                f"base_url and model must be set together, got {self.base_url!r} and "
                f"{self.model!r}; set both, or neither for no fallback"
            )
        return self


class JudgeConfig(Section):
    """The LLM judge behind an OpenAI-compatible endpoint."""

    base_url: _Url = None
    """Endpoint ending in /v1, or the environment variable that holds it, as $OPENAI_BASE_URL; null:
    the local heuristic judge is started on loopback."""
    model: str = "local-heuristic"
    """Model name sent to the endpoint."""
    preset: (
        Literal["auto", "openai", "anthropic", "gemini", "deepseek", "mistral"]
        | Literal["openrouter", "together", "vllm", "sglang", "ollama"]
        | None
    ) = "auto"
    """Whose defaults fill the keys of this section that are not given; auto: the provider of
    `base_url`; null: none."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; keys are never read from files or logged."""
    temperature: float | None = Field(0.2, ge=0, le=2)
    """Sampling temperature of the judge; null: not sent, for models that refuse it."""
    top_p: float | None = Field(0.9, gt=0, le=1)
    """Nucleus of the judge's sampling; null: not sent."""
    max_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the cap; OpenAI's newer models want `max_completion_tokens`."""
    max_output_tokens: int = Field(8192, ge=64)
    """Cap on the judge's answer; doubled once when an answer is cut off."""
    response_format: Literal["json_schema", "json_object", "none"] = "json_schema"
    """How the endpoint is asked for JSON."""
    min_concurrency: int = Field(10, ge=1)
    """Requests in flight that throttling does not cut below; lowered to `max_concurrency`."""
    start_concurrency: int = Field(20, ge=1)
    """Requests in flight at first; the limit rises while answers come; as above."""
    max_concurrency: int = Field(100, ge=1)
    """Requests in flight at most."""
    throttle_cooldown_s: float = Field(15.0, ge=0)
    """After a cut of the limit, none and no growth for this long, or as long as the judge asks."""
    requests_per_minute: float | None = Field(None, gt=0)
    """The provider's limit on requests; null: none is kept."""
    tokens_per_minute: float | None = Field(None, gt=0)
    """The provider's limit on tokens, prompt and answer together; null: none is kept."""
    max_attempts: int = Field(4, ge=1)
    """Tries for one judgement; waiting for a judge that throttles uses up none."""
    retry_budget: float = Field(0.2, ge=0)
    """Retries as a share of all judgements, throttling aside; ten are always allowed."""
    hedge_budget: float = Field(0.05, ge=0, le=1)
    """Second requests beside the last stragglers as a share of all judgements; 0: none."""
    breaker_pause_s: float = Field(5.0, gt=0)
    """A judge that is down is asked again after this long, then after twice as long, and so on."""
    breaker_patience_s: float = Field(600.0, ge=0)
    """After this long without the judge the run checkpoints and stops."""
    max_cost_usd: float | None = Field(None, gt=0)
    """The run stops before the call that could pass this, counted from the start of the command;
    needs the prices; null: no limit."""
    check_at_start: bool = True
    """One short paid request before the run: a setting the judge does not take is found there."""
    context_length: int | None = Field(None, ge=1024)
    """Tokens that the judge's model can read and write; null: as the endpoint tells, if it does."""
    connect_timeout_s: float = Field(10.0, gt=0)
    """Limit on opening a connection."""
    timeout_s: float = Field(180.0, gt=0)
    """Limit on one try; grows by `timeout_s_per_1k_words`, so that long stories are not lost."""
    timeout_s_per_1k_words: float = Field(20.0, ge=0)
    """Further seconds for each 1,000 words of the story."""
    deadline_s: float = Field(900.0, gt=0)
    """Limit on one judgement, all tries and waits together."""
    max_failed_fraction: float = Field(0.10, ge=0, lt=1)
    """Above this share of failed rows the optimizer step is held and they are judged again."""
    max_rejudge_rounds: int = Field(2, ge=0)
    """How often failed rows of a held step are judged again before the run stops."""
    injection_scan: bool | None = None
    """Stories that speak to the judge are judged without that text, too, the lower score counts,
    and `reward.injection_penalty` is due; null: on for a language model, off for the local judge,
    which follows no orders and counts such text itself. Human stories are not scanned."""
    noise_std: float | None = Field(None, ge=0)
    """Noise of one judgement, in units of the reward: groups whose rewards spread less are left
    out; `python -m polaris_fast.judge calibrate --write` measures it; null: 0."""
    resample_below_sigmas: float = Field(0.0, ge=0)
    """Groups whose rewards spread by less than this many `noise_std` are judged a second time, and
    the two judgements averaged; 2 is a good value; 0: none."""
    canary_steps: int = Field(0, ge=0)
    """Every so many steps five fixed stories are judged again, to see a judge that drifts; 0: off.
    """
    journal: Annotated[str | None, _Off] = None
    """SQLite file of all judgements, never paid for twice: null: `judge_journal.sqlite` beside the
    run's folder; `off`: none is kept."""
    price_input: float | None = Field(None, ge=0)
    """USD per million prompt tokens; null: unknown, and costs are not reckoned."""
    price_cached_input: float | None = Field(None, ge=0)
    """USD per million prompt tokens from the provider's cache; null: `price_input`."""
    price_output: float | None = Field(None, ge=0)
    """USD per million completion tokens, reasoning included; set with `price_input`."""

    fallback: FallbackConfig = FallbackConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        """The provider's settings where none are given; what is given always counts."""
        if not isinstance(given, dict) or not isinstance(given.get("base_url"), str):
            return given
        try:
            base_url = url_from_environment(given["base_url"])
        except ValueError:
            return given  # the field says so under its own name
        choice = given.get("preset", "auto")
        return preset_settings(base_url, given.get("model"), choice) | given

    @model_validator(mode="after")
    def _check_cost(self) -> Self:
        paid = {"": self} | ({"fallback.": self.fallback} if self.fallback.base_url else {})
        for prefix, judge in paid.items():
            if self.max_cost_usd is not None and self.base_url and judge.price_input is None:
                raise ValueError(
                    f"max_cost_usd ({self.max_cost_usd}) needs {prefix}price_input and "
                    f"{prefix}price_output, in USD per million tokens; set them, or max_cost_usd "
                    "to null"
                )
        return self

    def scans(self) -> bool:
        """Whether stories are scanned for injections, see `injection_scan`."""
        return self.base_url is not None if self.injection_scan is None else self.injection_scan

    def for_fallback(self) -> JudgeConfig:
        """The settings of the fallback judge: its own, else the first judge's; limits and prices
        belong to one endpoint and are not taken over, nor is the key."""
        own_limits = ["requests_per_minute", "tokens_per_minute", "context_length"]
        own_prices = ["price_input", "price_cached_input", "price_output"]
        unshared: dict[str, Any] = dict.fromkeys([*own_limits, *own_prices])
        if self.fallback.base_url != self.base_url:
            unshared["api_key_env"] = ""
            unshared |= preset_settings(self.fallback.base_url, self.fallback.model)
        own = {k: v for k, v in self.fallback.model_dump().items() if v is not None}
        return self.model_copy(update=unshared | own | {"fallback": FallbackConfig()})

    @model_validator(mode="after")
    def _check_resampling(self) -> Self:
        if self.resample_below_sigmas and not self.noise_std:
            raise ValueError(
                f"resample_below_sigmas ({self.resample_below_sigmas:g}) needs noise_std, got "
                f"{self.noise_std}; measure it with `python -m polaris_fast.judge calibrate "
                "--write`, or set resample_below_sigmas to 0"
            )
        return self

    @model_validator(mode="after")
    def _check_prices(self) -> Self:
        given = [self.price_input is not None, self.price_output is not None]
        if any(given) != all(given) or (self.price_cached_input is not None and not all(given)):
            raise ValueError(
                "price_input and price_output must be set together (price_cached_input goes with "
                f"both), got {self.price_input}, {self.price_output} and "
                f"{self.price_cached_input}; set both, or neither for unknown costs"
            )
        return self


class RewardConfig(Section):
    """R = quality - repetition - length - blank (recipe section 1)."""

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
    """Subtracted when a story speaks to its judge, besides the lower of its two scores."""
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
        if self.ratio_free >= self.ratio_zero:
            raise ValueError(
                f"ratio_free ({self.ratio_free}) must be below ratio_zero ({self.ratio_zero})"
            )
        if self.function is not None and ":" not in self.function:
            raise ValueError(f"function must be 'package.module:callable', got {self.function!r}")
        return self


class HRIConfig(Section):
    """Human-reference injection: one row of each group is the human story (recipe section 2)."""

    mode: Annotated[Literal["off", "anchor", "luffy"], _Off] = "anchor"
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


class EngineConfig(Section):
    """Who holds the weights when several ranks train."""

    kind: Literal["replicated", "deepspeed"] = "replicated"
    """`replicated`: every rank holds the whole model and optimizer; `deepspeed`: ZeRO shards."""
    zero_stage: Literal[1, 2, 3] = 2
    """What DeepSpeed shards: optimizer state, also gradients (2), also weights (3)."""
    offload_optimizer: bool = False
    """DeepSpeed keeps the optimizer's state in CPU memory."""
    offload_param: bool = False
    """DeepSpeed keeps the weights in CPU memory (ZeRO-3 only)."""
    deepspeed_config: str | None = None
    """DeepSpeed JSON file whose settings win over the ones derived from this configuration."""

    @model_validator(mode="after")
    def _check(self) -> Self:
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

    action: Annotated[Literal["off", "warn", "stop"], _Off] = "warn"
    """What an alarm does: nothing, a warning, or the end of the run after a checkpoint."""
    baseline_steps: int = Field(10, ge=1)
    """First steps of the run, whose means are what later ones are compared with."""
    patience: int = Field(5, ge=1)
    """Steps in a row that a sign must last."""
    max_repetition_rise: float = Field(0.1, ge=0)
    """Rise of self-repetition above its start."""
    max_injection: float = Field(0.05, ge=0, le=1)
    """Share of stories with text for the judge."""
    max_reference_overlap: float = Field(0.05, ge=0, le=1)
    """Share of a story's 8-grams that its prompt's human story has."""
    max_group_similarity: float = Field(0.5, ge=0, le=1)
    """Shared 4-grams of two rollouts of one group, Jaccard."""
    min_length_share: float = Field(0.7, gt=0, le=1)
    """Smallest share of the starting length ratio that a rising reward may be won with."""


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


class Config(Section):
    """Everything a run needs; the resolved copy is written beside its results."""

    # model
    model_name_or_path: str | None = None
    """Folder or hub id of a Hugging Face causal LM; null: the embedded tiny model."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Parameter and activation type."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU when there is one."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward."""
    offload_activations: bool = False
    """What checkpointing keeps, each layer's input, waits for backward in CPU memory."""
    mlp_tile_tokens: int = Field(0, ge=0)
    """Tokens that an MLP takes at a time, its wide activations made again in backward; 0: all."""
    logits_dtype: Literal["fp32", "bf16"] = "fp32"
    """Rounding of the logits, to match the rollout engine's."""

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
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    """Schedule, by transformers."""
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
        list[Literal["tensorboard", "wandb", "trackio"]], BeforeValidator(_tracker_list)
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
        if self.offload_activations and not self.gradient_checkpointing:
            raise ValueError(
                "offload_activations moves what checkpointing keeps, but gradient_checkpointing is "
                "false; set it to true, or offload_activations to false"
            )
        if self.max_steps == 0:
            raise ValueError("max_steps must be -1 or at least 1, got 0")
        if self.judge.canary_steps and self.reward.function is not None:
            raise ValueError(
                f"judge.canary_steps ({self.judge.canary_steps}) watches the judge, but "
                f"reward.function ({self.reward.function}) takes its place; set canary_steps to 0"
            )
        if self.rollout.engine == "vllm" and self.engine.zero_stage == 3:
            if self.engine.kind == "deepspeed":
                raise ValueError(
                    "rollout.engine vllm is sent whole weights by the first rank, which "
                    "engine.zero_stage 3 keeps in shards; set engine.zero_stage to 2 or "
                    "rollout.engine to hf"
                )
        self._check_staleness()
        self._check_loss()
        return self

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
            **self.loss_options,  # type: ignore[arg-type]
        )
