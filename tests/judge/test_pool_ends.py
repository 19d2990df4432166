"""Every wait ends: odd answers, odd texts and mistakes of ours leave no job without an outcome."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp import web

from benchmarks import scripted_endpoint as play
from benchmarks.scripted_endpoint import ScriptedServer
from polaris_fast.judge import JudgeJob
from polaris_fast.judge.attempt import Inquiry, Sender
from polaris_fast.judge.canary import probe_job
from polaris_fast.judge.endpoint import num_bytes
from polaris_fast.judge.faults import FaultKind, JudgeFault, JudgeStopped
from polaris_fast.judge.flow.admission import Admission
from polaris_fast.judge.flow.aimd import AdaptiveLimit, LimitRange
from polaris_fast.judge.flow.bell import Bell
from polaris_fast.judge.flow.breaker import Breaker, BreakerTimes
from polaris_fast.judge.flow.buckets import Bucket
from polaris_fast.judge.flow.cost import CostBudget, Verdict
from polaris_fast.judge.flow.panel import Tier
from polaris_fast.judge.journal import Purpose
from polaris_fast.judge.request import build_messages
from polaris_fast.judge.retry import Deadline
from polaris_fast.loop_thread import LoopThread
from polaris_fast.types import Failed, Rejected, Scored

CANARY = probe_job().story
DAY = play.status(429, headers={"Retry-After": "86400"})


def job(story: str, job_id: str = "0/0/0", **changes) -> JudgeJob:
    return JudgeJob(job_id=job_id, prompt="A prompt.", story=story, **changes)


def scripts(plans: dict[str, list]):
    return lambda story: plans.get(story, [])


# a judge that is away --------------------------------------------------------------------------


def test_a_wait_beyond_the_deadline_counts_as_no_credit_and_pauses(make_pool):
    plans = {"one": [DAY], CANARY: [DAY]}
    with (
        ScriptedServer(scripts(plans)) as server,
        make_pool(server.base_url, breaker_patience_s=30) as pool,
    ):
        outcome = pool.submit(job("one")).result(timeout=20)
        metrics = pool.take_metrics()
    assert isinstance(outcome, Scored)
    assert metrics["judge/breaker_opened"] == 1
    assert metrics["judge/faults/quota"] == 2
    assert server.stories == ["one", CANARY, CANARY, "one"]


def test_a_daily_quota_that_stays_spent_says_how_long_the_judge_wants_to_wait(make_pool):
    with ScriptedServer(default=DAY) as server, make_pool(server.base_url) as pool:
        outcome = pool.submit(job("one")).result(timeout=20)
    assert isinstance(outcome, Failed) and outcome.final
    assert "asks to wait 86400 s, longer than judge.deadline_s" in outcome.reason


def test_a_canary_that_raises_ends_in_giving_up_and_not_in_waiting(make_pool, monkeypatch, caplog):
    async def broken(*args: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(Sender, "canary", broken)
    with ScriptedServer(default=play.status(402)) as server, make_pool(server.base_url) as pool:
        outcome = pool.submit(job("one")).result(timeout=20)
    assert isinstance(outcome, Failed) and outcome.final
    assert "a mistake of ours" in outcome.reason and "ZeroDivisionError" in caplog.text


def test_a_budget_that_cannot_pay_for_a_canary_ends_the_pause_at_once(make_pool):
    with (
        ScriptedServer(scripts({"away": [play.status(402)]})) as server,
        make_pool(
            server.base_url,
            breaker_pause_s=0.2,
            breaker_patience_s=600,
            max_cost_usd=100.0,
            max_output_tokens=64,
            price_input=1000.0,
            price_output=1000.0,
        ) as pool,
    ):
        away = pool.submit(job("away"))
        while not pool.is_paused:
            time.sleep(0.001)
        pool._cost.spent_usd = 100.0  # by requests that were under way, say
        outcome = away.result(timeout=20)
    assert isinstance(outcome, Failed) and outcome.final and outcome.kind == "budget"
    assert "judge.max_cost_usd" in outcome.reason
    assert "breaker_patience_s" not in outcome.reason


def test_without_its_fallback_a_run_goes_on(make_pool):
    plans = {"refused": [play.refusal()] * 9}
    with (
        ScriptedServer(scripts(plans)) as main,
        ScriptedServer(default=play.status(402)) as other,
        make_pool(main.base_url, fallback={"base_url": other.base_url, "model": "b"}) as pool,
    ):
        group = [pool.submit(job(s, s, group="0/0")) for s in ("refused", "beside")]
        refused, beside = (future.result(timeout=20) for future in group)
        later = pool.submit(job("later", "later", group="0/0")).result(timeout=20)
        fine = pool.submit(job("fine", "0/1/0", group="0/1")).result(timeout=20)
        assert pool.outdated("0/0") == frozenset()
        assert not pool.is_paused and not pool.health().is_paused  # no row waits for it
        num_asked = len(other.requests)
        again = pool.submit(job("refused", "0/2/0", group="0/2")).result(timeout=20)
        assert len(other.requests) == num_asked
    assert refused == again == Rejected("I cannot judge this.")
    assert all(isinstance(outcome, Scored) for outcome in (beside, later, fine))


def test_rows_wait_for_a_fallback_that_may_come_back(make_pool):
    plans = {"refused": [play.refusal()] * 9}
    away = scripts({"refused": [play.status(402)], CANARY: [play.status(402)]})
    with (
        ScriptedServer(scripts(plans)) as main,
        ScriptedServer(away, default=play.ok(70)) as other,
        make_pool(
            main.base_url,
            fallback={"base_url": other.base_url, "model": "b"},
            breaker_pause_s=0.2,
            breaker_patience_s=30,
        ) as pool,
    ):
        refused = pool.submit(job("refused", group="0/0"))
        while not pool.is_paused:
            time.sleep(0.001)
        assert refused.result(timeout=20).quality == pytest.approx(0.7)
        assert not pool.is_paused


def test_money_that_a_canary_had_set_aside_is_free_for_those_who_wait_for_it(make_pool):
    with ScriptedServer([play.status(503)]) as server, make_pool(server.base_url) as pool:
        endpoint = pool._endpoints[Tier.MAIN]

        async def heard() -> None:
            waiting = asyncio.create_task(endpoint.admission.bell.wait())
            await asyncio.sleep(0)
            with pytest.raises(JudgeFault, match="503"):
                await pool._judging.probe(endpoint, probe_job())
            await asyncio.wait_for(waiting, 2)

        pool._thread.call(heard())


# a second judgement of a close group -----------------------------------------------------------


@pytest.mark.parametrize("second", [play.status(404), play.refusal()])
def test_a_second_judgement_that_fails_leaves_the_first_and_the_groups_judge(make_pool, second):
    with (
        ScriptedServer([play.ok(40), *[second] * 9]) as main,
        ScriptedServer(default=play.ok(90)) as other,
        make_pool(main.base_url, fallback={"base_url": other.base_url, "model": "b"}) as pool,
    ):
        first = pool.submit(job("a", group="0/0")).result(timeout=20)
        again = pool.submit(job("a", group="0/0", samples=2, needed=1)).result(timeout=20)
        metrics = pool.take_metrics()
        assert pool.outdated("0/0") == frozenset()
    assert again.quality == first.quality == pytest.approx(0.4)
    assert again.flags == ("samples:1/2",)
    assert metrics["judge/journal_hits"] == metrics["judge/resampled"] == 1
    assert not other.requests


def test_a_second_judgement_is_averaged_with_the_first_which_is_not_paid_again(make_pool):
    with ScriptedServer([play.ok(40), play.ok(60)]) as server, make_pool(server.base_url) as pool:
        pool.submit(job("a")).result(timeout=20)
        again = pool.submit(job("a", samples=2, needed=1)).result(timeout=20)
    assert again.quality == pytest.approx(0.5)
    assert len(server.requests) == 2


@pytest.mark.parametrize("needed", [0, 3])
def test_no_more_judgements_can_be_needed_than_are_asked_for(needed):
    with pytest.raises(ValueError, match="needed must be from 1 to samples"):
        job("a", samples=2, needed=needed)


# odd texts and answers -------------------------------------------------------------------------


def test_a_lone_surrogate_is_no_mistake_of_ours():
    assert num_bytes([{"role": "user", "content": "late\ud83d"}]) == 7


def test_json_nested_without_end_is_a_fault_like_any_other(make_pool):
    async def nested(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"[" * 200_000, content_type="application/json")

    with ScriptedServer([nested, play.ok(40)]) as server, make_pool(server.base_url) as pool:
        assert isinstance(pool.submit(job("a")).result(timeout=20), Scored)
        assert pool.take_metrics()["judge/faults/transient"] == 1


# mistakes of ours ------------------------------------------------------------------------------


def test_counting_that_fails_leaves_no_future_open(make_pool, monkeypatch):
    with ScriptedServer() as server, make_pool(server.base_url) as pool:
        monkeypatch.setattr(pool.metrics, "job_ended", lambda *args: 1 / 0)
        assert isinstance(pool.submit(job("a")).result(timeout=20), Scored)


def test_a_loop_that_cannot_be_made_is_an_error_and_no_endless_wait(monkeypatch):
    monkeypatch.setattr(asyncio, "run", lambda coroutine: coroutine.close())
    with pytest.raises(RuntimeError, match="no event loop"):
        LoopThread("test").start()


def admission_of(**buckets: Bucket) -> Admission:
    return Admission(
        AdaptiveLimit(LimitRange()),
        Breaker(BreakerTimes()),
        CostBudget(None),
        Bell(),
        now=lambda: 0.0,
        on_open=lambda: None,
        **buckets,
    )


def test_what_was_not_sent_gives_its_share_of_the_minute_back():
    async def cancelled_while_it_waits(requests: Bucket, tokens: Bucket) -> None:
        admission = admission_of(requests=requests, tokens=tokens)
        task = asyncio.create_task(admission.enter(0, bound_usd=0.0, tokens=50.0))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled() and admission.gate.in_flight == 0

    requests, tokens = Bucket(60.0, 0.0), Bucket(60.0, 0.0)
    tokens.take(1.0, 0.0)  # empty: the next one waits
    asyncio.run(cancelled_while_it_waits(requests, tokens))
    assert requests.take(1.0, 0.0) == 0.0
    assert tokens.take(1.0, 1.0) == 0.0


@pytest.mark.parametrize("given_up", [False, True])
def test_what_waits_for_its_minute_is_not_sent_to_a_judge_that_is_down_by_then(given_up):
    """Nor does it keep its place, its money or its share of the minute meanwhile."""

    async def enter_while_it_opens() -> None:
        breaker, bell, cost = Breaker(BreakerTimes()), Bell(), CostBudget(10.0)
        loop, requests = asyncio.get_running_loop(), Bucket(60_000.0, 0.0)
        requests.take(1020.0, 0.0)  # the next one waits for 21 ms
        admission = Admission(
            AdaptiveLimit(LimitRange()),
            breaker,
            cost,
            bell,
            now=lambda: 0.0,
            on_open=lambda: None,
            requests=requests,
        )
        task = asyncio.create_task(admission.enter(0, bound_usd=10.0, tokens=0.0))
        await asyncio.sleep(0)
        begin = loop.time()
        breaker.trip(0.0, FaultKind.QUOTA, "no credit")
        while admission.gate.in_flight and loop.time() < begin + 5:
            await asyncio.sleep(0.005)
        assert not task.done() and admission.gate.in_flight == 0
        assert cost.reserve(10.0) is Verdict.GO
        cost.settle(10.0, 0.0)
        assert requests.take(0.0, 0.02) == 0.0  # the debt of the 1020 alone
        if given_up:
            breaker.give_up(FaultKind.QUOTA, "it stayed away")
        else:
            breaker.probe_succeeded()
        bell.ring()
        if given_up:
            with pytest.raises(JudgeStopped, match="it stayed away"):
                await task
        else:
            await task
            assert admission.gate.in_flight == 1

    asyncio.run(enter_while_it_opens())


@pytest.mark.parametrize(
    ("kind", "limit"),
    [(FaultKind.TRANSIENT, 20), (FaultKind.TIMEOUT, 20), (FaultKind.INVALID, 40)],
)
def test_only_answers_let_more_requests_in_flight(kind, limit):
    async def limit_after_twenty() -> int:
        admission = admission_of()
        for _ in range(20):
            admission.learn(JudgeFault(kind, "x"))
        return admission.limit.limit

    assert asyncio.run(limit_after_twenty()) == limit


def test_a_beaten_hedge_hands_out_the_reward_that_the_journal_keeps(make_pool, tmp_path):
    """Two answers that arrive in one turn of the loop are two ends of one inquiry."""
    path, key = str(tmp_path / "journal.sqlite"), "0" * 64
    with (
        ScriptedServer([play.ok(90), play.ok(10)]) as server,
        make_pool(server.base_url, journal=path) as pool,
    ):
        endpoint, sender = pool._endpoints[Tier.MAIN], pool._judging._sender
        pool._journal.begin(key, job=job("a"), sample=0, judge_id="j", model="m")
        messages, deadline = build_messages("p", "a"), Deadline(time.monotonic() + 20)
        inquiry = Inquiry(endpoint, job("a"), key, 0, messages, 100, deadline)
        rewards = [
            pool._thread.call(sender.send(inquiry, purpose))
            for purpose in (Purpose.HEDGE, Purpose.FIRST)
        ]
        kept = pool._journal.lookup(key)
    assert rewards == [kept, kept]
    assert kept.quality == pytest.approx(0.9)
