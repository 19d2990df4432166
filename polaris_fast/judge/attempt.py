"""One request for one judgement: admitted, noted, sent, read, and booked, in this order.

Whatever happens to it, cancelling included, its place is given back, its cost is booked, and the
journal holds how it ended; a reward is committed together with the answer that brought it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..config import JudgeConfig
from ..types import Scored
from .client import Exchange
from .completion import Answer
from .endpoint import Endpoint, num_bytes
from .faults import FaultKind, JudgeFault, JudgeStopped
from .flow.admission import Permit
from .flow.cost import Verdict
from .jobs import JudgeJob
from .journal import AttemptRecord, Journal, JournalError, Purpose
from .judgement import InvalidJudgement, parse_judgement
from .metrics import ScorerMetrics
from .request import Messages, build_messages
from .retry import Deadline

log = logging.getLogger(__name__)

CANCELLED = "cancelled"  # an attempt that was not waited for: a hedge's loser, or the pool's end


class Inconsistent(JudgeFault):
    """An answer with faults that leave its numbers usable."""

    def __init__(self, detail: str, answer: str, scored: Scored) -> None:
        super().__init__(FaultKind.INCONSISTENT, detail, answer=answer)
        self.scored = scored


@dataclass(frozen=True, slots=True)
class Kept:
    """An inconsistent answer, in case no better one comes."""

    attempt_id: int
    record: AttemptRecord
    scored: Scored


@dataclass(slots=True)
class Inquiry:
    """One text that a judge is asked about, and how far the asking has come."""

    endpoint: Endpoint
    job: JudgeJob  # its story is what the judge reads
    key: str
    order: int  # the job's number; older ones go first
    messages: Messages
    max_tokens: int
    deadline: Deadline
    num_begun: int = 0
    kept: Kept | None = None
    scored: Scored | None = None  # the first one to arrive, as the journal keeps it


@dataclass(slots=True)
class _Sent:
    """A request under way, and what came of it."""

    attempt_id: int
    permit: Permit
    queue_s: float
    begin: float
    exchange: Exchange = field(default_factory=Exchange)
    answer: Answer | None = None
    scored: Scored | None = None
    fault: JudgeFault | None = None
    fault_name: str | None = "internal"  # until something is known


class Sender:
    """Sends single requests and books them."""

    def __init__(self, journal: Journal, metrics: ScorerMetrics) -> None:
        self._journal, self._metrics = journal, metrics

    async def send(
        self, inquiry: Inquiry, purpose: Purpose, on_sent: Callable[[], None] = lambda: None
    ) -> Scored:
        """One request and its judgement.

        Args:
            on_sent: called when the request has its place and is sent.

        Raises:
            JudgeFault: there is none; `JudgeStopped` when nothing is sent any more.
            JournalError: the journal cannot be written, nothing was sent.
        """
        endpoint, wished_at = inquiry.endpoint, time.monotonic()
        size = num_bytes(inquiry.messages)
        permit = await endpoint.admission.enter(
            inquiry.order,
            bound_usd=endpoint.bound_usd(size, inquiry.max_tokens),
            tokens=endpoint.likely_tokens(size),
        )
        queue_s = time.monotonic() - wished_at
        if purpose is not Purpose.HEDGE:  # a hedge queues beside the first request, not before it
            inquiry.deadline.extend(queue_s)
        on_sent()
        try:
            return await self._exchange(inquiry, purpose, permit, queue_s)
        finally:
            endpoint.admission.leave(permit)

    async def canary(self, endpoint: Endpoint, job: JudgeJob) -> None:
        """Send a canary story past an open breaker, to see whether the judge answers.

        Raises:
            JudgeFault: as `send`; `prober.is_outage` tells whether the judge is away.
        """
        config, cost = endpoint.config, endpoint.admission.cost
        messages = build_messages(job.prompt, job.story)
        key = endpoint.key(job.prompt, job.story, 0)
        self._journal.begin(key, job=job, sample=0, judge_id=endpoint.judge_id, model=config.model)
        bound_usd = endpoint.bound_usd(num_bytes(messages), config.max_output_tokens)
        verdict = cost.reserve(bound_usd)
        if verdict is not Verdict.GO:
            fault = JudgeStopped if verdict is Verdict.STOP else JudgeFault
            raise fault(FaultKind.BUDGET, cost.message(bound_usd))
        permit, deadline = Permit(0.0, bound_usd), Deadline(time.monotonic() + config.deadline_s)
        inquiry = Inquiry(endpoint, job, key, 0, messages, config.max_output_tokens, deadline)
        try:
            await self._exchange(inquiry, Purpose.CANARY, permit, 0.0)
        finally:
            cost.settle(bound_usd, permit.cost_usd)
            endpoint.admission.bell.ring()  # requests of another judge may wait for the money

    def accept(self, kept: Kept) -> Scored:
        """Take an inconsistent answer after all, and keep its reward."""
        self._end(kept.attempt_id, kept.record, kept.scored)
        return kept.scored

    async def _exchange(
        self, inquiry: Inquiry, purpose: Purpose, permit: Permit, queue_s: float
    ) -> Scored:
        inquiry.num_begun += 1
        number = inquiry.num_begun
        attempt_id = self._journal.begin_attempt(inquiry.key, number=number, purpose=purpose)
        self._metrics.sent(queue_s)
        sent = _Sent(attempt_id, permit, queue_s, time.monotonic())
        try:
            await self._ask(inquiry, sent)
            # A hedge that has just been beaten must not hand out what the journal does not keep.
            inquiry.scored = inquiry.scored or sent.scored
            assert inquiry.scored is not None
            return inquiry.scored
        except JudgeFault as fault:
            sent.fault, sent.fault_name = fault, fault.kind.value
            raise
        except asyncio.CancelledError:
            sent.fault_name = CANCELLED
            raise
        finally:
            self._book(inquiry, sent)

    async def _ask(self, inquiry: Inquiry, sent: _Sent) -> None:
        endpoint, story = inquiry.endpoint, inquiry.job.story
        left_s = inquiry.deadline.left_s(time.monotonic())
        sent.answer = answer = await endpoint.client.ask(
            inquiry.messages,
            timeout_s=min(try_timeout_s(endpoint.config, story), max(left_s, 0.001)),
            max_tokens=inquiry.max_tokens,
            exchange=sent.exchange,
        )
        text = answer.usable_text()
        try:
            judgement = parse_judgement(text, story)
        except InvalidJudgement as error:
            raise JudgeFault(FaultKind.INVALID, str(error), answer=text) from error
        scored = judgement.to_scored(answer.model or endpoint.config.model)
        if judgement.correction is not None:
            raise Inconsistent(judgement.correction, text, scored)
        sent.scored, sent.fault_name = scored, None

    # booking: never waits ---------------------------------------------------------------------

    def _book(self, inquiry: Inquiry, sent: _Sent) -> None:
        endpoint, answer = inquiry.endpoint, sent.answer
        total_s = time.monotonic() - sent.begin
        size = num_bytes(inquiry.messages)
        cost_usd = endpoint.cost_usd(answer, size) if answer is not None else None
        if answer is not None:
            endpoint.learn_tokens(size, answer)
            endpoint.hedging.answered(total_s)
            self._metrics.answered(answer, total_s)
            counted = answer.prompt_tokens + answer.completion_tokens
            sent.permit.tokens = counted or sent.permit.estimated_tokens
        elif sent.exchange.in_doubt:  # the provider may have worked on it, and bills it
            sent.permit.tokens = sent.permit.estimated_tokens
            cost_usd = endpoint.likely_usd(size) if endpoint.prices is not None else None
        sent.permit.cost_usd = cost_usd or 0.0
        if cost_usd is not None:  # an unknown price is not 0
            self._metrics.paid(cost_usd)
        if sent.fault_name is not None:
            self._metrics.try_failed(sent.fault_name)
        if sent.fault_name != CANCELLED:
            endpoint.admission.learn(sent.fault)
        record = _record(sent, total_s, cost_usd)
        if isinstance(sent.fault, Inconsistent):
            inquiry.kept = Kept(sent.attempt_id, record, sent.fault.scored)
        self._end(sent.attempt_id, record, sent.scored)

    def _end(self, attempt_id: int, record: AttemptRecord, scored: Scored | None) -> None:
        try:
            self._journal.end_attempt(attempt_id, record, scored)
        except JournalError as error:  # the answer is paid for and good; nothing more will be sent
            log.error("%s", error)


def try_timeout_s(config: JudgeConfig, story: str) -> float:
    """Limit on one try: grows with the story, or long stories would be dropped more often."""
    return config.timeout_s + config.timeout_s_per_1k_words * len(story.split()) / 1000


def _record(sent: _Sent, total_s: float, cost_usd: float | None) -> AttemptRecord:
    answer, fault = sent.answer, sent.fault
    return AttemptRecord(
        status=sent.exchange.status,
        fault=sent.fault_name,
        request_id=sent.exchange.request_id,
        model=answer.model if answer else None,
        queue_s=sent.queue_s,
        first_byte_s=sent.exchange.first_byte_s,
        total_s=total_s,
        prompt_tokens=answer.prompt_tokens if answer else 0,
        cached_tokens=answer.cached_tokens if answer else 0,
        completion_tokens=answer.completion_tokens if answer else 0,
        reasoning_tokens=answer.reasoning_tokens if answer else 0,
        cost_usd=cost_usd,
        text=answer.text if answer else None,
        detail=fault.detail if fault else None,
    )
