"""The judge: its endpoint, limits, prices and fallback."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ..judge_presets import PRESET_KEYS, preset_settings, url_from_environment
from .section import Off, Section, Url

_LIMITS = ("requests_per_minute", "tokens_per_minute", "context_length")
_PRICES = ("price_input", "price_cached_input", "price_output")
# What is true of one address and is not taken over to another: above all the key.
OF_ONE_ENDPOINT = ("preset", *PRESET_KEYS, *_LIMITS, *_PRICES)


class FallbackConfig(Section):
    """Another judge for groups of which the first refuses a row; null: as the first judge's."""

    base_url: Url = None
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

    base_url: Url = None
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
    """Cap on the judge's answer; one that is cut off is asked for once more, with twice the cap
    where the judge and its context allow it."""
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
    journal: Annotated[str | None, Off] = None
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
        unshared: dict[str, Any] = dict.fromkeys([*_LIMITS, *_PRICES])
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
