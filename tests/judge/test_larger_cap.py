"""An answer that is cut off is asked for once more, with a cap that the judge takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from aiohttp import web

from benchmarks import scripted_endpoint as play
from benchmarks.scripted_endpoint import ScriptedServer
from polaris_fast.judge import JudgeJob
from polaris_fast.types import Failed, Outcome, Scored

CAP = 1000


def judged(pool, *stories: str) -> list[Outcome]:
    return [pool.submit(JudgeJob(s, "p", s)).result(timeout=20) for s in stories]


def caps(server: ScriptedServer) -> list[int]:
    return [request.body["max_tokens"] for request in server.requests]


def at_most(cap: int, then: play.Behaviour) -> Callable[[str], list[play.Behaviour]]:
    """An endpoint that refuses a larger cap."""

    async def behave(request: web.Request) -> web.StreamResponse:
        if (await request.json())["max_tokens"] > cap:
            error = {"message": f"max_tokens must be in [1, {cap}]", "type": "invalid_request"}
            return await play.status(400, error=error)(request)
        return await then(request)

    return lambda story: [behave] * 9


def test_the_cap_is_doubled_once(make_pool):
    with (
        ScriptedServer(default=play.truncated()) as server,
        make_pool(server.base_url, max_output_tokens=CAP) as pool,
    ):
        (outcome,) = judged(pool, "one")
    assert isinstance(outcome, Failed) and outcome.kind == "truncated"
    assert caps(server) == [CAP, 2 * CAP]


def test_a_larger_cap_that_is_refused_is_asked_for_no_more(make_pool):
    with (
        ScriptedServer(at_most(CAP, play.truncated())) as server,
        make_pool(server.base_url, max_output_tokens=CAP) as pool,
    ):
        first, second = judged(pool, "one", "two")
        metrics = pool.take_metrics()
    assert isinstance(first, Failed) and isinstance(second, Failed)
    assert first.kind == second.kind == "truncated"
    assert "judge.max_output_tokens" in first.reason and "must be in [1, 1000]" in first.reason
    assert caps(server) == [CAP, 2 * CAP, CAP, CAP]
    assert metrics["judge/failures/truncated"] == 2


@pytest.mark.parametrize("told_by", ["setting", "endpoint"])
def test_the_cap_stays_within_the_known_context(make_pool, told_by):
    entry = {"id": "judge-a", "context_length": 5000}  # by its own count a request is 100
    settings = {"context_length": 5000} if told_by == "setting" else {}
    models = play.body({"data": [entry if told_by == "endpoint" else {"id": "judge-a"}]})
    with (
        ScriptedServer([play.truncated(), play.ok(40)], models=models) as server,
        make_pool(server.base_url, model="judge-a", max_output_tokens=3000, **settings) as pool,
    ):
        assert isinstance(judged(pool, "one")[0], Scored)
    first, second = caps(server)
    assert first == 3000 < second < 6000


def test_without_room_for_more_the_old_cap_is_tried_again(make_pool):
    with (
        ScriptedServer([play.truncated(), play.ok(40)]) as server,
        make_pool(server.base_url, max_output_tokens=CAP, context_length=1024) as pool,
    ):
        assert isinstance(judged(pool, "one")[0], Scored)
    assert caps(server) == [CAP, CAP]
