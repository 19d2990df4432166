"""One job's way: its group's judge, its samples, the text without injections, the journal, tries.

outcome        which judge: the group's; the fallback when the first refuses a row of it
  sample         original text, and the cleaned one where the scan found something: the lower
    judged         once at a time, from the journal if it is there
      tried          retries, each a request or two (a hedge), see `retry` and `attempt`
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..types import Failed, Outcome, Rejected, RowKind, Scored
from . import injection
from .attempt import Inquiry, Sender
from .endpoint import Endpoint, num_bytes
from .faults import FaultKind, JudgeFault
from .flow.allowance import Allowance
from .flow.hedging import hedged
from .flow.panel import GroupPanel, Tier
from .jobs import JudgeJob
from .journal import InFlight, Journal, JournalError, Purpose
from .metrics import ScorerMetrics
from .request import ask_again, build_messages
from .retry import Backoff, Deadline, TryCount, retrying
from .samples import combine_samples, outcome_of

log = logging.getLogger(__name__)

JOURNAL = "journal"  # class of jobs that were not sent because the journal cannot be written
SNAPSHOT_CHANGED = "snapshot_changed"  # flag: another model answered for this row of the group


@dataclass(frozen=True, slots=True)
class _Task:
    """One text to be judged once by one judge."""

    endpoint: Endpoint
    job: JudgeJob
    sample: int
    order: int
    purpose: Purpose = Purpose.FIRST


class Judging:
    """Conducts jobs; lives on the pool's loop."""

    def __init__(
        self,
        endpoints: Mapping[Tier, Endpoint],
        panel: GroupPanel,
        journal: Journal,
        metrics: ScorerMetrics,
        *,
        retry_budget: Allowance,
        backoff: Backoff,
    ) -> None:
        self._endpoints, self._panel = endpoints, panel
        self._journal, self._metrics = journal, metrics
        self._retry_budget, self._backoff = retry_budget, backoff
        self._sender = Sender(journal, metrics)
        self._under_way: InFlight[Scored] = InFlight()
        self._turn = asyncio.Lock()

    async def outcome(self, job: JudgeJob, order: int) -> Outcome:
        """The job's outcome; raises nothing but CancelledError.

        Args:
            order: the job's number; older jobs go first.
        """
        # A job is read and noted in a turn of the loop of its own: thousands in one turn would keep
        # the answers under way waiting until they time out.
        async with self._turn:
            await asyncio.sleep(0)
        tier = self._panel.assign(job.group, job.job_id)
        refusal: Rejected | None = None  # by the main judge
        while True:
            outcome = await self._by(self._endpoints[tier], job, order)
            if isinstance(outcome, Rejected) and tier is Tier.MAIN:
                refusal = outcome
                serving = Tier.FALLBACK if self._panel.refused(job.group) else Tier.MAIN
            elif self._lost_fallback(outcome, tier):
                self._panel.lose_fallback()
                serving = Tier.MAIN
            else:
                serving = tier if job.group is None else self._panel.assign(job.group, job.job_id)
            if serving is Tier.MAIN and refusal is not None:  # it would only refuse again
                outcome = refusal
                break
            if serving is tier:
                break
            tier = serving
        if isinstance(outcome, Scored):
            changed = self._panel.scored(job.group, job.job_id, tier, outcome.judge)
            if changed:
                outcome = replace(outcome, flags=(*outcome.flags, SNAPSHOT_CHANGED))
        return outcome

    async def probe(self, endpoint: Endpoint, job: JudgeJob) -> None:
        """Send the canary past an open breaker; raises JudgeFault while the judge is away."""
        await self._sender.canary(endpoint, job)

    def _lost_fallback(self, outcome: Outcome, tier: Tier) -> bool:
        """Whether a job has no score because its fallback was given up; no money is another end."""
        if tier is Tier.MAIN or not isinstance(outcome, Failed) or outcome.final:
            return False
        return self._endpoints[tier].is_given_up

    async def _by(self, endpoint: Endpoint, job: JudgeJob, order: int) -> Outcome:
        if job.needed is not None:
            self._metrics.count("resampled")
        scans = endpoint.config.scans() and job.kind is not RowKind.HUMAN
        findings = injection.scan(job.story) if scans else ()
        rest = injection.without(job.story, findings)
        samples = range(job.first_sample, job.first_sample + job.samples)
        tasks = [_Task(endpoint, job, sample, order) for sample in samples]
        if len(tasks) == 1:  # the common case needs no task of its own
            return await self._sample(tasks[0], rest, findings)
        outcomes = await asyncio.gather(*(self._sample(t, rest, findings) for t in tasks))
        return combine_samples(outcomes, job.needed)

    async def _sample(
        self, task: _Task, rest: str, findings: tuple[injection.Finding, ...]
    ) -> Outcome:
        try:
            scored = await self._judged(task)
            if findings:
                scored = await self._lower(scored, task, rest)
                scored = replace(scored, flags=(*scored.flags, *injection.flags(findings)))
            return scored
        except JudgeFault as fault:
            log.debug("job %s: no judgement: %s", task.job.job_id, fault)
            return outcome_of(fault, task.endpoint.tier)
        except JournalError as error:
            return Failed(str(error), JOURNAL, final=True)

    async def _lower(self, original: Scored, task: _Task, rest: str) -> Scored:
        """The lower of the two scores: what speaks to the judge must not pay."""
        if not rest:
            cleaned = Scored(0.0, judge=original.judge)
        else:
            job = replace(task.job, story=rest)
            cleaned = await self._judged(replace(task, job=job, purpose=Purpose.CLEAN))
        return min(original, cleaned, key=lambda scored: scored.quality)

    async def _judged(self, task: _Task) -> Scored:
        key = task.endpoint.key(task.job.prompt, task.job.story, task.sample)
        return await self._under_way.share(key, lambda: self._from_journal_or_judge(key, task))

    async def _from_journal_or_judge(self, key: str, task: _Task) -> Scored:
        known = self._known(key, task)
        if known is not None:
            self._metrics.count("journal_hits")
            return known
        endpoint, job = task.endpoint, task.job
        self._journal.begin(
            key,
            job=job,
            sample=task.sample,
            judge_id=endpoint.judge_id,
            model=endpoint.config.model,
        )
        inquiry = Inquiry(
            endpoint,
            job,
            key,
            task.order,
            messages=build_messages(job.prompt, job.story),
            max_tokens=endpoint.config.max_output_tokens,
            deadline=Deadline(time.monotonic() + endpoint.config.deadline_s),
        )
        try:
            return await self._tried(inquiry, task.purpose)
        except JudgeFault as fault:
            if inquiry.kept is not None:
                return self._sender.accept(inquiry.kept)
            self._journal.end(key, outcome_of(fault))
            raise

    def _known(self, key: str, task: _Task) -> Scored | None:
        known = self._journal.lookup(key)
        if known is None:
            former = task.endpoint.former_key(task.job.prompt, task.job.story, task.sample)
            known = self._journal.lookup(former) if former is not None else None
        return known

    async def _tried(self, inquiry: Inquiry, purpose: Purpose) -> Scored:
        endpoint = inquiry.endpoint
        tries = TryCount(
            endpoint.config.max_attempts,
            spend=self._retry_budget.spend,
            is_down=lambda: endpoint.is_down,
        )
        async for attempt in retrying(
            tries,
            self._backoff,
            deadline=inquiry.deadline,
            before_sleep=lambda state: self._metrics.count("retries"),
        ):
            with attempt:
                try:
                    return await self._sent(inquiry, purpose)
                except JudgeFault as fault:
                    if _refuses_cap(inquiry, fault):
                        raise _back_to_old_cap(inquiry, fault) from None
                    purpose = _prepare_next(inquiry, fault)
                    raise
        raise AssertionError("tenacity returns or raises")

    async def _sent(self, inquiry: Inquiry, purpose: Purpose) -> Scored:
        rule = inquiry.endpoint.hedging
        if not rule.enabled:
            return await self._sender.send(inquiry, purpose, lambda: self._earn(inquiry))

        async def second() -> Scored:
            scored = await self._sender.send(inquiry, Purpose.HEDGE)
            self._metrics.count("hedges_won")
            return scored

        def first(on_sent: Callable[[], None]) -> Coroutine[Any, Any, Scored]:
            def earn_and_tell() -> None:
                self._earn(inquiry)
                on_sent()

            return self._sender.send(inquiry, purpose, earn_and_tell)

        return await hedged(
            first,
            second,
            delay_s=rule.p95_s,
            may_hedge=lambda: self._may_hedge(inquiry.endpoint),
        )

    def _earn(self, inquiry: Inquiry) -> None:
        """A first call is sent, and earns its share of extra ones.

        Not when it is submitted: thousands at once would fill the account, which is bounded, once.
        """
        if inquiry.num_begun == 0:
            self._retry_budget.earn()
            inquiry.endpoint.hedging.first_call()

    def _may_hedge(self, endpoint: Endpoint) -> bool:
        spent = not endpoint.is_down and endpoint.hedging.spend(
            num_open=self._metrics.in_flight,
            batch=self._metrics.batch,
            queued=endpoint.admission.gate.waiting,
        )
        if spent:
            self._metrics.count("hedges")
        return spent


def _refuses_cap(inquiry: Inquiry, fault: JudgeFault) -> bool:
    """Whether the endpoint takes our requests, but none with a larger cap on the answer."""
    larger = inquiry.max_tokens > inquiry.endpoint.config.max_output_tokens
    refused = fault.kind in (FaultKind.REQUEST, FaultKind.TOO_LONG)
    return larger and refused and fault.status in (400, 413, 422)


def _back_to_old_cap(inquiry: Inquiry, fault: JudgeFault) -> JudgeFault:
    """What the job ends with; later answers that are cut off are asked for with the old cap."""
    asked, inquiry.max_tokens = inquiry.max_tokens, inquiry.endpoint.config.max_output_tokens
    inquiry.endpoint.refuses_larger_cap = True
    detail = (
        f"the answer was cut off at {inquiry.max_tokens} tokens (judge.max_output_tokens), and the "
        f"judge does not take {asked} ({fault.detail})"
    )
    return JudgeFault(FaultKind.TRUNCATED, detail)


def _prepare_next(inquiry: Inquiry, fault: JudgeFault) -> Purpose:
    """What the next request says differently; why it is sent."""
    if fault.kind is FaultKind.TRUNCATED:
        inquiry.max_tokens = inquiry.endpoint.larger_cap(num_bytes(inquiry.messages))
    if fault.answer is None:
        return Purpose.RETRY
    inquiry.messages = ask_again(inquiry.messages, fault.answer, fault.detail)
    return Purpose.REASK
