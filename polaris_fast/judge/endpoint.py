"""One judge: where it is, what it costs, when it may be asked, and whether it is well.

A pool has one, and another one for its fallback.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources

from ..config import JudgeConfig
from .canary import probe_job
from .client import JudgeClient, display_url
from .completion import Answer
from .faults import FaultKind
from .flow.admission import Admission
from .flow.aimd import AdaptiveLimit, LimitRange
from .flow.bell import Bell
from .flow.breaker import Breaker, BreakerState, BreakerTimes
from .flow.buckets import Bucket
from .flow.cost import CostBudget
from .flow.hedging import HedgeRule
from .flow.panel import Tier
from .health import JudgeHealth
from .heuristic import MODEL_NAME
from .jobs import JudgeJob
from .journal import job_key, judge_id, sampling_of, schema_version
from .metrics import ScorerMetrics
from .pricing import NO_USAGE, Prices, cost_usd, prices_of
from .prober import Prober
from .request import Messages
from .retry import Backoff
from .rubric import rubric_version
from .sketch import Moments

log = logging.getLogger(__name__)

BYTES_PER_TOKEN = 4.0  # of English, before the endpoint has told
LEAST_BYTES_PER_TOKEN = 2.0  # of any text that is worth judging: for the bound of a cost
PROMPT_SLACK = 1.15  # of an estimate that must not be too low
FIRST_ANSWER_TOKENS = 1500.0  # of a judgement, before one was seen
_LOCAL_SOURCES = ("heuristic.py", "features.py", "lexicon.py", "lexicon.txt")


Probe = Callable[["Endpoint", JudgeJob], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Shared:
    """What the endpoints of a pool have in common."""

    cost: CostBudget
    bell: Bell
    backoff: Backoff


class Endpoint:
    """A judge and the state of its service; lives on the pool's loop."""

    def __init__(self, config: JudgeConfig, base_url: str, tier: Tier, shared: Shared) -> None:
        """
        Args:
            config: of this judge; without `base_url` it is the local one.
            base_url: where it is, http or https, up to /v1.
            tier: its place in the pool.
        """
        self.config, self.tier = config, tier
        self.is_local = config.base_url is None
        self.client = JudgeClient(config, base_url, send_key=not self.is_local)
        if self.is_local:
            self.judge_id = self._former_id = judge_id(MODEL_NAME, "local", local_judge_version())
        else:
            self.judge_id = judge_id(config.model, display_url(base_url))
            self._former_id = f"{config.model}@{display_url(base_url)}"
        self.prices: Prices | None = prices_of(config)
        self.hedging = HedgeRule(0.0 if self.is_local else config.hedge_budget)
        breaker = Breaker(
            BreakerTimes(pause_s=config.breaker_pause_s, patience_s=config.breaker_patience_s)
        )
        self._prober = Prober(
            breaker,
            shared.bell,
            judge=self.client.display_url,
            patience_s=config.breaker_patience_s,
        )
        self.admission = _admission(config, shared, breaker, self._prober)
        self._bytes_per_token, self._answer_tokens = Moments(), Moments()
        self._told_no_usage = False
        self.context_length = config.context_length  # of the model; None: not known so far
        self.refuses_larger_cap = False  # it has turned a cap away that was doubled

    async def open(self, probe: Probe) -> None:
        """Open the connections; `probe` asks a judge about a story, past its breaker."""
        self._prober.use(lambda: probe(self, probe_job()))
        await self.client.__aenter__()

    async def close(self) -> None:
        """Stop probing and close the connections."""
        await self._prober.close()
        await self.client.__aexit__()

    def key(self, prompt: str, story: str, sample: int) -> str:
        """Name of a judgement in the journal."""
        return self._key(self.judge_id, prompt, story, sample)

    def former_key(self, prompt: str, story: str, sample: int) -> str | None:
        """Its name when addresses counted as they are spelt; None where that is the same."""
        if self._former_id == self.judge_id:
            return None
        return self._key(self._former_id, prompt, story, sample)

    def _key(self, judge: str, prompt: str, story: str, sample: int) -> str:
        return job_key(
            rubric_version=rubric_version(),
            schema_version=schema_version(),
            judge_id=judge,
            sampling=sampling_of(self.config),
            prompt=prompt,
            story=story,
            sample=sample,
        )

    @property
    def is_down(self) -> bool:
        """Whether the breaker is open."""
        return self.admission.breaker.state is not BreakerState.CLOSED

    @property
    def is_given_up(self) -> bool:
        """Whether the breaker will not close any more."""
        return self.admission.breaker.state is BreakerState.GIVEN_UP

    @property
    def holds_rows_up(self) -> bool:
        """Whether rows wait for this judge, or cannot be had: nobody waits for a lost fallback."""
        return self.is_down and not (self.is_given_up and self.tier is Tier.FALLBACK)

    def health(self, metrics: ScorerMetrics, cost: CostBudget) -> JudgeHealth:
        """How this judge is doing now, with the pool's own numbers."""
        admission, totals = self.admission, metrics.totals
        breaker = admission.breaker
        return JudgeHealth(
            jobs_in_flight=metrics.in_flight,
            requests_in_flight=admission.gate.in_flight,
            waiting=admission.gate.waiting,
            limit=admission.limit.limit,
            max_limit=self.config.max_concurrency,
            throttle_cuts=admission.limit.num_cuts,
            breaker=breaker.state.value,
            breaker_reason=breaker.reason if self.is_down else "",
            breaker_opened=breaker.num_opened,
            paused_s=breaker.open_s(time.monotonic()),
            num_calls=totals["calls"],
            num_retries=totals["retries"],
            num_throttles=totals[f"faults/{FaultKind.THROTTLE}"],
            num_faults=totals["faults"],
            latency_p95_s=self.hedging.p95_s(),
            spent_usd=cost.spent_usd,
            max_cost_usd=cost.limit_usd,
        )

    # tokens and dollars -----------------------------------------------------------------------

    def likely_tokens(self, num_bytes: int) -> float:
        """Prompt and answer of a request of so many bytes, as far as is known."""
        per_token = self._bytes_per_token.mean or BYTES_PER_TOKEN
        return num_bytes / per_token + (self._answer_tokens.mean or FIRST_ANSWER_TOKENS)

    def larger_cap(self, num_bytes: int) -> int:
        """Cap for an answer that was cut off: doubled, as far as the judge and its context allow.

        Args:
            num_bytes: of its request.
        """
        cap = self.config.max_output_tokens
        if self.refuses_larger_cap:
            return cap
        if self.context_length is None:
            return 2 * cap
        prompt_tokens = PROMPT_SLACK * num_bytes / (self._bytes_per_token.mean or BYTES_PER_TOKEN)
        return max(cap, min(2 * cap, self.context_length - int(prompt_tokens)))

    def bound_usd(self, num_bytes: int, max_tokens: int) -> float:
        """What such a request costs at most; 0 where prices are unknown."""
        return self._price(int(num_bytes / LEAST_BYTES_PER_TOKEN) + 1, max_tokens)

    def likely_usd(self, num_bytes: int) -> float:
        """What such a request probably costs: one whose answer was not waited for."""
        answer = self._answer_tokens.mean or FIRST_ANSWER_TOKENS
        prompt = int(self.likely_tokens(num_bytes) - answer)
        return self._price(prompt, min(int(answer), self.config.max_output_tokens))

    def cost_usd(self, answer: Answer, num_bytes: int) -> float | None:
        """What an answer cost; where the endpoint counts no tokens, what it probably did.

        Args:
            num_bytes: of its request.

        Returns:
            None where prices are unknown.
        """
        cost = cost_usd(
            self.prices,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            completion_tokens=answer.completion_tokens,
        )
        if cost is None and self.prices is not None:
            if not self._told_no_usage:
                self._told_no_usage = True
                log.warning(NO_USAGE, self.client.display_url, "by the length of the texts")
            cost = self.likely_usd(num_bytes)
        return cost

    def learn_tokens(self, num_bytes: int, answer: Answer) -> None:
        """An answer tells how many tokens its request had."""
        if answer.prompt_tokens:
            self._bytes_per_token.add(num_bytes / answer.prompt_tokens)
        if answer.completion_tokens:
            self._answer_tokens.add(float(answer.completion_tokens))

    def _price(self, prompt_tokens: int, completion_tokens: int) -> float:
        price = cost_usd(
            self.prices,
            prompt_tokens=prompt_tokens,
            cached_tokens=0,
            completion_tokens=completion_tokens,
        )
        return price or 0.0


def num_bytes(messages: Messages) -> int:
    """UTF-8 bytes of what the messages say."""
    # Data may hold lone surrogates; JSON escapes them when the request is written.
    return sum(len(message["content"].encode(errors="surrogatepass")) for message in messages)


def local_judge_version() -> str:
    """A short hash of the local judge's code and word lists: with them its scores change."""
    digest = hashlib.sha256()
    for name in _LOCAL_SOURCES:
        digest.update((resources.files(__package__) / name).read_bytes())
    return digest.hexdigest()[:12]


def _admission(config: JudgeConfig, shared: Shared, breaker: Breaker, prober: Prober) -> Admission:
    now = time.monotonic()
    limits = LimitRange(config.min_concurrency, config.start_concurrency, config.max_concurrency)
    per_minute = (config.requests_per_minute, config.tokens_per_minute)
    requests, tokens = (Bucket(rate, now) if rate is not None else None for rate in per_minute)
    return Admission(
        AdaptiveLimit(limits, cooldown_s=config.throttle_cooldown_s, hold_s=shared.backoff.base_s),
        breaker,
        shared.cost,
        shared.bell,
        now=time.monotonic,
        on_open=prober.start,
        requests=requests,
        tokens=tokens,
    )
