"""Every failure class leads to its action; nothing is lost, and nothing but a judgement scores."""

from __future__ import annotations

import gc
import math
import random
import threading
import time
import warnings

import pytest

from benchmarks import scripted_endpoint as play
from benchmarks.scripted_endpoint import ScriptedServer
from polaris_fast.judge import JudgeJob
from polaris_fast.judge.judging import Judging
from polaris_fast.types import Failed, Rejected, Scored


def job(story: str = "A story.", **changes) -> JudgeJob:
    return JudgeJob(job_id="0/0/0", prompt="A prompt.", story=story, **changes)


def run(make_pool, script, *, samples: int = 1, **config):
    """Outcome of one job against a script, the pool's metrics, and the requests."""
    with ScriptedServer(script) as server, make_pool(server.base_url, **config) as pool:
        outcome = pool.submit(job(samples=samples)).result(timeout=20)
        return outcome, pool.take_metrics(), server.requests


def test_scored(make_pool):
    outcome, metrics, requests = run(make_pool, [play.ok(42)])
    assert outcome == Scored(0.42, outcome.dimensions, "scripted-judge", ())
    assert outcome.dimensions["P1"] == 15
    assert metrics["judge/submitted"] == metrics["judge/scored"] == 1
    assert metrics["judge/quality"] == pytest.approx(0.42)
    assert metrics["judge/dim/P2"] == 20
    assert metrics["judge/prompt_tokens"] == 100
    assert metrics["judge/cached_tokens"] == 60
    assert metrics["judge/completion_tokens"] == 10
    assert 0 < metrics["judge/latency_s/p50"] <= metrics["judge/latency_s/p99"]
    assert metrics["judge/in_flight"] == 0
    body = requests[0].body
    assert body["temperature"] == 0.2
    assert body["top_p"] == 0.9
    assert body["response_format"]["json_schema"]["strict"] is True
    assert "Authorization" not in requests[0].headers


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (play.status(429, headers={"Retry-After": "0.01"}), "throttle"),
        (play.status(529), "throttle"),
        (play.status(500), "transient"),
        (play.status(503, headers={"Retry-After": "0"}), "transient"),
        (play.reset_mid_body(), "transient"),
        (play.reset_at_once(), "transient"),
        (play.not_json(), "transient"),
        (play.body({"error": {"message": "upstream", "code": 502}}), "transient"),
        (play.body({"error": {"message": "slow down", "code": 429}}), "throttle"),
        (play.truncated(), "truncated"),
        (play.refusal(), "refusal"),
        (play.null_content(), "refusal"),
        (play.filtered(), "refusal"),
        (play.missing_dimension(), "invalid"),
        (play.text("no JSON at all"), "invalid"),
        (play.slow(5.0), "timeout"),
    ],
)
def test_one_fault_then_scored(make_pool, fault, kind):
    limit_s = 0.3 if kind == "timeout" else 10.0
    outcome, metrics, requests = run(make_pool, [fault, play.fenced(42)], timeout_s=limit_s)
    assert isinstance(outcome, Scored), outcome
    assert outcome.quality == pytest.approx(0.42)
    assert metrics[f"judge/faults/{kind}"] == 1
    assert metrics["judge/retries"] == 1
    assert not any(key.startswith("judge/failures/") for key in metrics)
    assert len(requests) == 2


@pytest.mark.parametrize(
    ("fault", "kind", "num_tries"),
    [
        (play.status(500), "transient", 4),
        (play.truncated(), "truncated", 2),
        (play.missing_dimension(), "invalid", 3),  # the first and two more
        (play.status(400, error={"code": "context_length_exceeded"}), "too_long", 1),
        (play.status(404), "request", 1),
    ],
)
def test_lasting_fault_fails(make_pool, fault, kind, num_tries):
    outcome, metrics, requests = run(make_pool, [fault] * 10)
    assert isinstance(outcome, Failed)
    assert outcome.kind == kind
    assert outcome.reason
    assert len(requests) == num_tries
    assert metrics["judge/failed"] == metrics[f"judge/failures/{kind}"] == 1
    assert metrics[f"judge/faults/{kind}"] == num_tries
    assert metrics["judge/retries"] == num_tries - 1
    assert "judge/quality" not in metrics


def test_lasting_refusal_is_rejected_after_one_retry(make_pool):
    outcome, metrics, requests = run(make_pool, [play.refusal("Not this one.")] * 5)
    assert outcome == Rejected("Not this one.")
    assert len(requests) == 2
    assert metrics["judge/rejected"] == metrics["judge/failures/refusal"] == 1


def test_throttling_uses_up_no_tries(make_pool):
    throttled = [play.status(429, headers={"retry-after-ms": "1"})] * 6
    outcome, metrics, _ = run(make_pool, [*throttled, play.ok()], max_attempts=1)
    assert isinstance(outcome, Scored)
    assert metrics["judge/faults/throttle"] == 6


def test_throttling_ends_at_the_deadline(make_pool):
    throttled = play.status(429, headers={"retry-after-ms": "300"})
    outcome, _, requests = run(make_pool, [throttled] * 9, deadline_s=0.5)
    assert isinstance(outcome, Failed)
    assert outcome.kind == "throttle"
    assert len(requests) == 2  # a wait that cannot end in time is not begun


@pytest.mark.parametrize(
    ("headers", "at_least_s"),
    [
        ({"Retry-After": "0.15"}, 0.15),
        ({"retry-after-ms": "150"}, 0.15),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0.0),
    ],
)
def test_retry_after_is_honoured(make_pool, headers, at_least_s):
    begin = time.monotonic()
    outcome, _, _ = run(make_pool, [play.status(429, headers=headers), play.ok()])
    assert isinstance(outcome, Scored)
    assert time.monotonic() - begin >= at_least_s


def test_truncated_doubles_the_cap_once(make_pool):
    _, _, requests = run(make_pool, [play.truncated()] * 3, max_output_tokens=100)
    assert [seen.body["max_tokens"] for seen in requests] == [100, 200]


def test_invalid_is_asked_again_with_the_validators_message(make_pool):
    outcome, _, requests = run(make_pool, [play.missing_dimension("N4"), play.text("{"), play.ok()])
    assert isinstance(outcome, Scored)
    assert [len(seen.messages) for seen in requests] == [2, 4, 4]
    assert "N4" in requests[1].messages[3]["content"]
    assert requests[2].messages[2]["content"] == "{"
    assert requests[0].messages == requests[2].messages[:2]  # the cached prefix holds


def test_wrong_total_is_recomputed_and_flagged(make_pool):
    outcome, metrics, _ = run(make_pool, [play.wrong_total(99)])
    assert outcome.quality == pytest.approx(0.40)
    assert outcome.flags == ("total_mismatch",)
    assert metrics["judge/flags/total_mismatch"] == 1


def test_deadline_cuts_a_try_short(make_pool):
    begin = time.monotonic()
    outcome, _, _ = run(make_pool, [play.slow(10)], deadline_s=0.2)
    assert isinstance(outcome, Failed)
    assert outcome.kind == "timeout"
    assert time.monotonic() - begin < 3


def test_long_stories_get_more_time(make_pool):
    script = [play.slow(0.25, play.ok(42))] * 2
    config = {"timeout_s": 0.1, "timeout_s_per_1k_words": 1.0, "max_attempts": 1}
    with ScriptedServer(script) as server, make_pool(server.base_url, **config) as pool:
        short = pool.submit(job("A word.")).result()
        long = pool.submit(job("word " * 2000)).result()
    assert isinstance(short, Failed)
    assert short.kind == "timeout"
    assert isinstance(long, Scored)


# several samples -------------------------------------------------------------------------------


def test_samples_are_averaged(make_pool):
    outcome, metrics, requests = run(
        make_pool, [play.ok(30), play.ok(40), play.wrong_total(99)], samples=3
    )
    assert outcome.quality == pytest.approx((0.30 + 0.40 + 0.40) / 3)
    assert outcome.dimensions["P5"] == 0
    assert outcome.dimensions["P2"] == pytest.approx((15 + 20 + 20) / 3)
    assert outcome.flags == ("total_mismatch",)
    assert len(requests) == 3
    assert metrics["judge/submitted"] == metrics["judge/scored"] == 1


def test_two_of_three_samples_are_enough(make_pool):
    outcome, _, _ = run(make_pool, [play.ok(30), play.status(404), play.ok(40)], samples=3)
    assert outcome.quality == pytest.approx(0.35)
    assert outcome.flags == ("samples:2/3",)


def test_half_of_the_samples_is_not_enough(make_pool):
    outcome, _, _ = run(make_pool, [play.ok(30), play.status(404)], samples=2)
    assert isinstance(outcome, Failed)
    assert outcome.kind == "request"
    assert "1 of 2" in outcome.reason


def test_refused_samples_are_rejected(make_pool):
    outcome, _, _ = run(make_pool, [play.refusal()] * 6, samples=3)
    assert isinstance(outcome, Rejected)


# many jobs -------------------------------------------------------------------------------------

FAULTS = [
    play.status(429, headers={"retry-after-ms": "2"}),
    play.status(500),
    play.reset_mid_body(),
    play.truncated(),
    play.missing_dimension(),
    play.null_content(),
]
LASTING = [play.status(404), play.status(500), play.refusal()]


def test_every_job_is_accounted_for(make_pool):
    rng = random.Random(7)
    plans, truth = {}, {}
    for i in range(300):
        story, points = f"Story {i}.", i % 100
        truth[story] = points / 100
        faults = [rng.choice(FAULTS)] if rng.random() < 0.3 else []
        lasting = [rng.choice(LASTING)] * 9 if rng.random() < 0.05 else []
        plans[story] = [*faults, *lasting, play.ok(points)]
    with (
        ScriptedServer(plans.__getitem__) as server,
        make_pool(server.base_url, max_concurrency=16, retry_budget=1.0) as pool,
    ):
        futures = {story: pool.submit(job(story)) for story in plans}
        outcomes = {story: future.result(timeout=60) for story, future in futures.items()}
        metrics = pool.take_metrics()
        assert server.most_in_flight <= 16
        assert metrics["judge/submitted"] == 300
        ended = metrics["judge/scored"] + metrics["judge/failed"] + metrics["judge/rejected"]
        assert ended == 300
        extra = metrics["judge/retries"] + metrics.get("judge/hedges", 0)
        assert extra == len(server.requests) - 300
    for story, outcome in outcomes.items():
        if isinstance(outcome, Scored):
            assert outcome.quality == pytest.approx(truth[story])
            assert math.isfinite(outcome.quality)
    assert sum(isinstance(o, Scored) for o in outcomes.values()) > 270
    assert metrics["judge/failed"] > 0
    assert metrics["judge/rejected"] > 0
    assert all(math.isfinite(value) for value in metrics.values())


def test_concurrency_is_bounded(make_pool):
    with (
        ScriptedServer(default=play.slow(0.02)) as server,
        make_pool(server.base_url, max_concurrency=3) as pool,
    ):
        futures = [pool.submit(job(f"{i}")) for i in range(20)]
        assert all(isinstance(future.result(timeout=20), Scored) for future in futures)
        assert server.most_in_flight == 3


def test_submission_from_many_threads(make_pool):
    futures = []
    with ScriptedServer() as server, make_pool(server.base_url) as pool:
        threads = [
            threading.Thread(target=lambda: futures.append(pool.submit(job()))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(isinstance(future.result(timeout=20), Scored) for future in futures)


def test_metrics_are_taken_once(make_pool):
    with ScriptedServer() as server, make_pool(server.base_url) as pool:
        pool.submit(job()).result()
        assert pool.take_metrics()["judge/scored"] == 1
        second = pool.take_metrics()
    assert second["judge/scored"] == second["judge/submitted"] == 0
    assert "judge/quality" not in second
    assert "judge/latency_s/p50" not in second


# closing ---------------------------------------------------------------------------------------


def test_close_ends_what_is_in_flight(make_pool):
    with ScriptedServer(default=play.slow(30)) as server:
        with make_pool(server.base_url, max_concurrency=4) as pool:
            futures = [pool.submit(job(f"{i}")) for i in range(10)]
            while server.in_flight < 4:
                time.sleep(0.005)
            assert pool.take_metrics()["judge/in_flight"] == 10
            begin = time.monotonic()
        assert time.monotonic() - begin < 2
    outcomes = [future.result(timeout=1) for future in futures]
    assert all(isinstance(outcome, Failed) and outcome.kind == "cancelled" for outcome in outcomes)
    assert pool.take_metrics()["judge/failures/cancelled"] == 10


def test_close_at_once_after_submitting(make_pool):
    with ScriptedServer() as server:
        with make_pool(server.base_url) as pool:
            futures = [pool.submit(job(f"{i}")) for i in range(50)]
        assert all(isinstance(f.result(timeout=1), Scored | Failed) for f in futures)


def test_interrupt_in_the_with_block_closes(make_pool):
    before = threading.active_count()
    with ScriptedServer(default=play.slow(30)) as server:
        with pytest.raises(KeyboardInterrupt), make_pool(server.base_url) as pool:
            future = pool.submit(job())
            raise KeyboardInterrupt
        assert future.result(timeout=1).kind == "cancelled"
    assert threading.active_count() == before


def test_submit_outside_the_with_block(make_pool):
    with ScriptedServer() as server:
        pool = make_pool(server.base_url)
        with pytest.raises(RuntimeError, match="not open"):
            pool.submit(job())
        with pool:
            pass
        with pytest.raises(RuntimeError, match="not open"):
            pool.submit(job())
        pool.close()  # a second close is harmless


def test_closing_leaves_no_warning(make_pool, recwarn):
    with ScriptedServer(default=play.slow(30)) as server, make_pool(server.base_url) as pool:
        pool.submit(job())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    assert not recwarn.list


def test_a_mistake_of_ours_fails_the_job_and_is_logged(make_pool, caplog, monkeypatch):
    monkeypatch.setattr(Judging, "outcome", lambda *args: 1 / 0)
    outcome, metrics, _ = run(make_pool, [])
    assert isinstance(outcome, Failed)
    assert outcome.kind == "internal"
    assert metrics["judge/failures/internal"] == 1
    assert "ZeroDivisionError" in caplog.text
