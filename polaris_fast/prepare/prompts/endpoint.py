"""One question to an OpenAI-compatible endpoint: journal, money, a place, retries.

Client, faults, retries, adaptive limit and prices are those of the judge pool.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ...config import JudgeConfig
from ...judge.client import JudgeClient, display_url
from ...judge.completion import Answer
from ...judge.faults import FaultKind, JudgeFault
from ...judge.flow.aimd import AdaptiveLimit, LimitRange
from ...judge.flow.cost import CostBudget, Verdict
from ...judge.flow.gate import Gate
from ...judge.pricing import NO_USAGE, TOKENS_PER_PRICE, Prices, cost_usd, prices_of
from ...judge.retry import Backoff, Deadline, TryCount, retrying
from ...judge_presets import preset_settings
from ...types import UserError
from ..settings import EndpointSettings
from .estimate import tokens_of
from .journal import Kept, PromptJournal, answer_key
from .messages import Messages

log = logging.getLogger(__name__)

MAX_OUTPUT_TOKENS = 8192  # models that think first need more than the answer
MAX_FAILURES_IN_A_ROW = 8
DEADLINE_S, TRY_S = 600.0, 180.0
_STOPPERS = {FaultKind.AUTH, FaultKind.QUOTA, FaultKind.REQUEST}


class PromptsStopped(UserError):
    """No further question will be answered; what was answered is in the journal."""


@dataclass(slots=True)
class Spent:
    """What the calls of this command came to."""

    num_calls: int = 0
    from_journal: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    price_known: bool = True
    faults: dict[str, int] = field(default_factory=dict)


def judge_config(settings: EndpointSettings) -> JudgeConfig:
    """The settings in the judge's terms. Raises UserError: no usable address."""
    parts = urlsplit(settings.base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"--endpoint: {settings.base_url!r} is no http(s) address; give it up to /v1, for "
            "example http://127.0.0.1:8000/v1"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            f"--endpoint: {display_url(settings.base_url)} is given with a user name, a password "
            "or a query; leave them out and put the key into the environment"
        )
    preset = preset_settings(settings.base_url, settings.model)
    refuses = "temperature" in preset and preset["temperature"] is None
    given: dict[str, Any] = {
        "base_url": settings.base_url,
        "model": settings.model,
        "response_format": "none",
        "temperature": None if refuses else settings.temperature,
        "top_p": None,
        "price_input": settings.price_input,
        "price_output": settings.price_output,
        "deadline_s": DEADLINE_S,
    }
    if settings.api_key_env is not None:
        given["api_key_env"] = settings.api_key_env
    return JudgeConfig(**given)


class Endpoint:
    """Asks questions; for one event loop. `spent` is kept up to date."""

    def __init__(
        self,
        config: JudgeConfig,
        client: JudgeClient,
        journal: PromptJournal,
        *,
        concurrency: int,
        max_cost_usd: float | None,
        backoff: Backoff | None = None,
    ) -> None:
        self._config, self._client, self._journal = config, client, journal
        self._prices: Prices | None = prices_of(config)
        low = min(concurrency, 4)
        self._limit = AdaptiveLimit(LimitRange(low, min(concurrency, 16), concurrency))
        self._gate = Gate(self._limit, time.monotonic)
        self._cost = CostBudget(max_cost_usd)
        self._backoff = backoff or Backoff()
        self._failures = 0  # in a row
        self._stopped: PromptsStopped | None = None
        self._num = 0
        self._told_no_usage = False
        self.spent = Spent(price_known=self._prices is not None)

    async def ask(self, messages: Messages) -> str | None:
        """The answer's text; None when all tries failed for this question alone.

        Raises:
            PromptsStopped: key, credit, address or budget stand in the way, or nothing works.
        """
        sampling: dict[str, object] = {"temperature": self._config.temperature}
        key = answer_key(self._client.display_url, self._config.model, sampling, messages)
        kept = self._journal.get(key)
        if kept is not None:
            self.spent.from_journal += 1
            return kept.text
        try:
            kept = await self._try(messages)
        except PromptsStopped as stop:
            self._stopped = stop  # nothing new is sent; what is under way may end
            raise
        except JudgeFault as fault:
            self._failed(fault)
            return None
        self._failures = 0
        self._journal.put(key, kept)
        return kept.text

    async def _try(self, messages: Messages) -> Kept:
        deadline = Deadline(time.monotonic() + DEADLINE_S)
        tries = TryCount(self._config.max_attempts)
        loop = retrying(tries, self._backoff, deadline=deadline, before_sleep=self._count_retry)
        self._num += 1
        order = self._num
        async for attempt in loop:
            with attempt:
                return await self._once(messages, order, deadline)
        raise AssertionError("the loop returns or raises")

    def _count_retry(self, _: object) -> None:
        self.spent.retries += 1

    async def _once(self, messages: Messages, order: int, deadline: Deadline) -> Kept:
        if self._stopped is not None:
            raise self._stopped
        bound = self._bound_usd(messages)
        begin = time.monotonic()
        await self._gate.enter(order)
        cost: float | None = None
        try:
            await self._set_aside(bound)
            try:
                deadline.extend(time.monotonic() - begin)
                answer = await self._send(messages)
                cost = self._book(answer, bound)
                text = answer.usable_text()
            except JudgeFault as fault:
                if fault.kind is FaultKind.TIMEOUT:  # it may have been written, and be charged
                    cost = bound
                raise
            finally:
                self._cost.settle(bound, cost or 0.0)
        finally:
            self._gate.leave()
        return Kept(
            text, answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens, cost
        )

    async def _send(self, messages: Messages) -> Answer:
        self.spent.num_calls += 1
        try:
            answer = await self._client.ask(messages, timeout_s=TRY_S, max_tokens=MAX_OUTPUT_TOKENS)
        except JudgeFault as fault:
            name = fault.kind.value
            self.spent.faults[name] = self.spent.faults.get(name, 0) + 1
            if fault.kind is FaultKind.THROTTLE:
                self._limit.throttled(time.monotonic(), fault.retry_after_s)
            if fault.kind in _STOPPERS:  # no retry mends it
                raise self._stop(fault) from None
            raise
        self._limit.answered(time.monotonic())
        self._gate.wake()
        return answer

    def _book(self, answer: Answer, bound: float) -> float | None:
        self.spent.prompt_tokens += answer.prompt_tokens
        self.spent.completion_tokens += answer.completion_tokens
        cost = cost_usd(
            self._prices,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            completion_tokens=answer.completion_tokens,
        )
        if cost is None and self._prices is not None:
            if not self._told_no_usage:
                self._told_no_usage = True
                log.warning(NO_USAGE, self._client.display_url, "at the most they can be")
            cost = bound
        self.spent.cost_usd += cost or 0.0
        return cost

    def _bound_usd(self, messages: Messages) -> float:
        """More than the call can cost: English has over two bytes a token."""
        if self._prices is None:
            return 0.0
        tokens = 2 * tokens_of(messages) * self._prices.input
        return (tokens + MAX_OUTPUT_TOKENS * self._prices.output) / TOKENS_PER_PRICE

    async def _set_aside(self, bound_usd: float) -> None:
        while (verdict := self._cost.reserve(bound_usd)) is Verdict.WAIT:
            await asyncio.sleep(0.02)  # until calls under way have given some back
        if verdict is Verdict.STOP:
            raise PromptsStopped(
                f"--max-cost: {self._cost.spent_usd:.4f} of {self._cost.limit_usd} USD are spent "
                f"and the next call may cost {bound_usd:.4f}; raise it and run the same command "
                "again, what is answered is not asked again"
            )

    def _failed(self, fault: JudgeFault) -> None:
        """One question has come to nothing; too many of them, and the endpoint is given up."""
        self._failures += 1
        if self._failures >= MAX_FAILURES_IN_A_ROW:
            self._stopped = self._stop(fault, f"{self._failures} times in a row, ")
            raise self._stopped

    def _stop(self, fault: JudgeFault, often: str = "") -> PromptsStopped:
        return PromptsStopped(
            f"--endpoint: {self._client.display_url} does not answer ({often}{fault.kind}: "
            f"{fault.detail}); put it right and run the same command again, what is answered is "
            f"kept in {self._journal.path}"
        )


async def check_endpoint(client: JudgeClient, config: JudgeConfig) -> None:
    """Costs no tokens.

    Raises:
        UserError: no connection, a key that is refused, or no chat completions there.
    """
    try:
        try:
            models = await client.list_models(timeout_s=config.connect_timeout_s)
        except JudgeFault as fault:
            if fault.kind is not FaultKind.REQUEST:
                raise
            models = {}
            await _probe(client, config)
    except JudgeFault as fault:
        if fault.kind is FaultKind.THROTTLE:
            return
        raise UserError(
            f"--endpoint: {client.display_url} cannot be used ({fault.detail}); start it, correct "
            f"the address (up to /v1), or put a valid key into {config.api_key_env or 'a variable'}"
        ) from None
    if models and config.model not in models:
        known = ", ".join(list(models)[:5]) + (", ..." if len(models) > 5 else "")
        raise UserError(
            f"--model: {client.display_url} does not serve {config.model!r}; it has {known}"
        )


async def _probe(client: JudgeClient, config: JudgeConfig) -> None:
    try:
        await client.probe(timeout_s=config.connect_timeout_s)
    except JudgeFault as fault:
        complaint = fault.kind in (FaultKind.REQUEST, FaultKind.REFUSAL)
        if complaint and fault.status not in (404, 405):
            return  # a complaint about the empty body: somebody is there
        raise
