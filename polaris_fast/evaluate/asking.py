"""Questions to the judge's endpoint besides the Story Quality rubric: one JSON object each.

They go through the judge's own client, faults, retries and prices; answers are kept on the disk by
their content, so that nothing is asked, or paid for, twice. A question without a usable answer is
`Failed`, never a number; where the endpoint would refuse them all, none is asked any more.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ..config import JudgeConfig
from ..judge.client import JudgeClient, display_url
from ..judge.completion import Answer as Completion
from ..judge.endpoint import LEAST_BYTES_PER_TOKEN, num_bytes
from ..judge.faults import FaultKind, JudgeFault, JudgeStopped
from ..judge.flow.cost import CostBudget, Verdict
from ..judge.journal import InFlight
from ..judge.pricing import NO_USAGE, cost_usd, prices_of
from ..judge.request import Messages, ask_again
from ..judge.retry import Backoff, Deadline, TryCount, retrying
from ..loop_thread import LoopThread
from ..types import Failed, UserError
from .store import JsonLines, key_of

log = logging.getLogger(__name__)

_POLL_S = 0.2  # how often a wait looks for a stop request
_STOPPERS = {FaultKind.AUTH, FaultKind.QUOTA, FaultKind.REQUEST}  # the same for every question

Answer = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """Two messages, system and user, and what an answer must look like."""

    name: str
    messages: Messages
    check: Callable[[Answer], Answer]  # raises ValueError in words that a judge can act on
    num_words: int  # of what is to be read: long texts get more time

    def key(self, config: JudgeConfig) -> str:
        """Name of the answer: of the question, the judge and its sampling."""
        judge = [config.model, display_url(config.base_url or ""), config.temperature, config.top_p]
        return key_of("question", judge, self.messages)


class Asker:
    """Asks many questions at once; use as a context manager."""

    def __init__(
        self,
        config: JudgeConfig,
        store: JsonLines,
        *,
        spent_usd: float = 0.0,
        backoff: Backoff | None = None,
    ) -> None:
        """
        Args:
            config: the judge; `base_url` must be set.
            store: where answers are kept.
            spent_usd: before, of `max_cost_usd`.
            backoff: waits between tries; None: as the judge pool's.
        """
        assert config.base_url is not None
        form = "none" if config.response_format == "none" else "json_object"
        self._config = config.model_copy(update={"response_format": form})
        self._client = JudgeClient(self._config, config.base_url)
        self._store = store
        self._budget = CostBudget(config.max_cost_usd, spent_usd)
        self._backoff = backoff or Backoff()
        self._loop = LoopThread("evaluation-judge")
        self._places: asyncio.Semaphore | None = None
        self._settled = asyncio.Condition()
        self._in_flight: InFlight[Answer] = InFlight()
        self._stopped: UserError | None = None
        self._told_no_usage = False

    def __enter__(self) -> Self:
        self._loop.start()
        self._loop.call(self._open())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call(self._client.__aexit__())
        self._loop.stop()

    def ask_all(
        self,
        questions: Sequence[Question],
        *,
        on_answer: Callable[[], None] = lambda: None,
        check_stop: Callable[[], None] = lambda: None,
    ) -> list[Answer | Failed]:
        """Checked answers in the order of the questions.

        Args:
            on_answer: called for each as it comes, on the caller's thread.
            check_stop: called while waiting; raises to stop. What is answered by then is kept.

        Raises:
            UserError: the endpoint refuses the key or the request, or there is no credit.
        """
        futures = [self._loop.submit(self._answer(question)) for question in questions]
        waiting: set[Future[Answer | Failed]] = set(futures)
        try:
            while waiting:
                check_stop()
                done, waiting = wait(waiting, _POLL_S, FIRST_COMPLETED)
                for future in done:
                    future.result()  # raises where nothing more is asked
                    on_answer()
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
        return [future.result() for future in futures]

    # on the loop ------------------------------------------------------------------------------

    async def _open(self) -> None:
        self._places = asyncio.Semaphore(self._config.max_concurrency)
        await self._client.__aenter__()

    async def _answer(self, question: Question) -> Answer | Failed:
        key = question.key(self._config)
        if key in self._store:
            return question.check(self._store[key]["answer"])
        try:  # two models may have written the same story
            return await self._in_flight.share(key, lambda: self._paid(key, question))
        except JudgeFault as fault:
            return Failed(f"{question.name}: {fault}", fault.kind)

    async def _paid(self, key: str, question: Question) -> Answer:
        assert self._places is not None
        async with self._places:
            answer = await self._tried(question)
        self._store.append(key, {"question": question.name, "answer": answer})
        return answer

    async def _tried(self, question: Question) -> Answer:
        messages, max_tokens = question.messages, self._config.max_output_tokens
        deadline = Deadline(time.monotonic() + self._config.deadline_s)
        tries = TryCount(self._config.max_attempts)
        ignore: Callable[[Any], None] = lambda state: None
        async for attempt in retrying(tries, self._backoff, deadline=deadline, before_sleep=ignore):
            with attempt:
                try:
                    return await self._once(question, messages, max_tokens)
                except JudgeFault as fault:
                    if fault.kind is FaultKind.TRUNCATED:
                        max_tokens = 2 * self._config.max_output_tokens
                    if fault.answer is not None:
                        messages = ask_again(question.messages, fault.answer, fault.detail)
                    raise
        raise AssertionError("tenacity returns or raises")

    async def _once(self, question: Question, messages: Messages, max_tokens: int) -> Answer:
        config = self._config
        timeout_s = config.timeout_s + config.timeout_s_per_1k_words * question.num_words / 1000
        size = int(num_bytes(messages) / LEAST_BYTES_PER_TOKEN) + 1
        bound = self._usd(size, 0, max_tokens) or 0.0
        await self._reserve(bound)
        cost = bound  # an answer that is not waited for may be written, and charged
        try:
            if self._stopped is not None:
                cost = 0.0
                raise self._stopped
            answer = await self._client.ask(messages, timeout_s=timeout_s, max_tokens=max_tokens)
            cost = self._cost(answer, bound)
        except JudgeFault as fault:
            if fault.kind is not FaultKind.TIMEOUT:
                cost = 0.0
            if fault.kind in _STOPPERS:  # no other question will fare better
                self._stopped = self._stop(question, fault)
                raise self._stopped from None
            raise
        finally:
            async with self._settled:
                self._budget.settle(bound, cost)
                self._settled.notify_all()
        text = answer.usable_text()
        try:
            return question.check(read_object(text))
        except ValueError as error:
            raise JudgeFault(FaultKind.INVALID, str(error), answer=text) from error

    async def _reserve(self, bound: float) -> None:
        """Set aside what a call may cost at most, once there is as much."""
        async with self._settled:
            while (verdict := self._budget.reserve(bound)) is Verdict.WAIT:
                await self._settled.wait()
        if verdict is Verdict.STOP:
            raise JudgeStopped(FaultKind.BUDGET, self._budget.message(bound))

    def _cost(self, answer: Completion, bound: float) -> float:
        """What an answer cost; the most it can have cost where the endpoint does not count."""
        cost = self._usd(answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens)
        if cost is None and bound and not self._told_no_usage:
            self._told_no_usage = True
            log.warning(NO_USAGE, self._client.display_url, "at the most they can be")
        return bound if cost is None else cost

    def _usd(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float | None:
        return cost_usd(
            prices_of(self._config),
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            completion_tokens=completion_tokens,
        )

    def _stop(self, question: Question, fault: JudgeFault) -> UserError:
        return UserError(
            f"judge.base_url: {self._client.display_url} refuses the questions for {question.name} "
            f"({fault}); put it right and run the same command again, what is answered is kept"
        )


def read_object(text: str) -> Answer:
    """The JSON object in an answer, whatever stands around it.

    Raises:
        ValueError: there is none.
    """
    body = text.rpartition("</think>")[2]
    start, end = body.find("{"), body.rfind("}")
    if start < 0 or end < start:
        raise ValueError("the answer holds no JSON object")
    try:
        tree = json.loads(body[start : end + 1])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError("the answer is no JSON object")
    return tree
