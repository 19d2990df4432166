"""`JudgePool`: many judgements at once for a trainer that is not asynchronous.

    with JudgePool(config.judge) as pool:
        future = pool.submit(JudgeJob(job_id="3/0/2", prompt=prompt, story=story))
        outcome = future.result()      # Scored, Failed or Rejected, never an exception

An asyncio loop runs in a thread of its own. Each judgement holds one of `max_concurrency` slots
from its first try to its last, waits included, so a throttled endpoint sees fewer requests. Its
deadline starts when it gets the slot: queueing is not the judge's fault.

With `samples=k` the k judgements run side by side and the job is Scored, with the means, if more
than half of them arrive; flag `samples:2/3` marks the ones that are missing. Otherwise it is
Rejected if the judge refused most of the missing ones, else Failed with their commonest class.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from tenacity import RetryCallState

from ..config import JudgeConfig
from ..types import Failed, Outcome, Rejected, Scored
from .client import JudgeClient
from .faults import FaultKind, JudgeFault
from .jobs import JudgeJob
from .judgement import InvalidJudgement, parse_judgement
from .local_server import LocalJudge
from .reach import check_reachable, check_url
from .request import ask_again, build_messages
from .retry import Backoff, TryCount, retrying
from .task_set import TaskSet

log = logging.getLogger(__name__)


class JudgePool:
    """Scores stories with one judge; a context manager, safe to close on Ctrl-C."""

    def __init__(self, config: JudgeConfig, *, backoff: Backoff | None = None) -> None:
        """Nothing is started before `with`.

        Args:
            backoff: waits between tries; None: 1 s doubling to 60 s.
        """
        self._config = config
        self._backoff = backoff or Backoff()
        self._tasks = TaskSet("judge-pool")
        self._metrics = self._tasks.metrics
        self._local: LocalJudge | None = None
        self._client: JudgeClient | None = None
        self._slots: asyncio.Semaphore | None = None

    def __enter__(self) -> Self:
        """Start the loop and, without `base_url`, the local judge; check that the judge answers.

        Raises:
            UserError: the judge cannot be reached or refuses the key; names `judge.base_url`.
        """
        try:
            self._tasks.start(self._begin)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def submit(self, job: JudgeJob) -> Future[Outcome]:
        """Queue one story. Call from any thread; RuntimeError when the pool is not open."""
        return self._tasks.submit(lambda: self._score(job))

    def take_metrics(self) -> dict[str, float]:
        """`judge/*` since the last call, see `metrics`."""
        return self._metrics.take()

    def close(self) -> None:
        """Cancel what is under way (its outcome is Failed, class `cancelled`) and stop."""
        try:
            self._tasks.close(self._end)
        finally:
            if self._local is not None:
                self._local.close()

    # below: on the loop

    async def _begin(self) -> None:
        config = self._config
        if config.base_url is None:
            self._local = LocalJudge()
            base_url = self._local.base_url
        else:
            base_url = check_url(config.base_url)
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._client = JudgeClient(config, base_url, send_key=self._local is None)
        await self._client.__aenter__()
        await check_reachable(self._client, config, wait_s=self._backoff.base_s / 2)

    async def _end(self) -> None:
        if self._client is not None:
            await self._client.__aexit__()

    async def _score(self, job: JudgeJob) -> Outcome:
        if job.samples == 1:
            return await self._judge_once(job)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._judge_once(job)) for _ in range(job.samples)]
        return combine_samples([task.result() for task in tasks])

    async def _judge_once(self, job: JudgeJob) -> Outcome:
        assert self._slots is not None
        async with self._slots:
            try:
                return await self._judge_with_retries(job)
            except JudgeFault as fault:
                log.debug("job %s: no judgement: %s", job.job_id, fault)
                if fault.kind is FaultKind.REFUSAL:
                    return Rejected(fault.detail)
                return Failed(fault.detail, fault.kind.value)

    async def _judge_with_retries(self, job: JudgeJob) -> Scored:
        config = self._config
        deadline_at = time.monotonic() + config.deadline_s
        try_limit_s = try_timeout_s(config, job.story)
        messages = first_messages = build_messages(job.prompt, job.story)
        max_tokens = config.max_output_tokens

        def note_retry(state: RetryCallState) -> None:
            self._metrics.retried()

        async for attempt in retrying(
            TryCount(config.max_attempts),
            self._backoff,
            deadline_at=deadline_at,
            before_sleep=note_retry,
        ):
            with attempt:
                timeout_s = min(try_limit_s, max(deadline_at - time.monotonic(), 0.001))
                try:
                    return await self._try_once(job.story, messages, timeout_s, max_tokens)
                except JudgeFault as fault:
                    self._metrics.try_failed(fault.kind)
                    if fault.kind is FaultKind.TRUNCATED:
                        max_tokens = 2 * config.max_output_tokens
                    if fault.kind is FaultKind.INVALID and fault.answer is not None:
                        messages = ask_again(first_messages, fault.answer, fault.detail)
                    raise
        raise AssertionError("tenacity returns or raises")

    async def _try_once(
        self, story: str, messages: list[dict[str, str]], timeout_s: float, max_tokens: int
    ) -> Scored:
        assert self._client is not None
        begin = time.monotonic()
        answer = await self._client.ask(messages, timeout_s=timeout_s, max_tokens=max_tokens)
        self._metrics.answered(answer, time.monotonic() - begin)
        try:
            judgement = parse_judgement(answer.text, story)
        except InvalidJudgement as error:
            raise JudgeFault(FaultKind.INVALID, str(error), answer=answer.text) from error
        return judgement.to_scored(answer.model or self._config.model)


def try_timeout_s(config: JudgeConfig, story: str) -> float:
    """Limit on one try: grows with the story, or long stories would be dropped more often."""
    return config.timeout_s + config.timeout_s_per_1k_words * len(story.split()) / 1000


def combine_samples(outcomes: list[Outcome]) -> Outcome:
    """The mean of several judgements of one story, if more than half of them arrived."""
    scored = [outcome for outcome in outcomes if isinstance(outcome, Scored)]
    if 2 * len(scored) > len(outcomes):
        flags = sorted({flag for one in scored for flag in one.flags})
        if len(scored) < len(outcomes):
            flags.append(f"samples:{len(scored)}/{len(outcomes)}")
        names = scored[0].dimensions
        return Scored(
            quality=sum(one.quality for one in scored) / len(scored),
            dimensions={n: sum(one.dimensions[n] for one in scored) / len(scored) for n in names},
            judge=scored[0].judge,
            flags=tuple(flags),
        )
    rejected = [outcome for outcome in outcomes if isinstance(outcome, Rejected)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    if len(rejected) > len(failed):
        return rejected[0]
    kind = Counter(one.kind for one in failed).most_common(1)[0][0]
    reason = next(one.reason for one in failed if one.kind == kind)
    return Failed(f"{len(scored)} of {len(outcomes)} judgements arrived; {reason}", kind)
