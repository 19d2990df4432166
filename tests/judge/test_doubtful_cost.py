"""A request that was sent may be billed, whatever became of its answer; others are free."""

from __future__ import annotations

import socket
import time

import pytest

from benchmarks import scripted_endpoint as play
from benchmarks.scripted_endpoint import ScriptedServer, wire
from polaris_fast.judge import JudgeJob
from polaris_fast.judge.flow.panel import Tier
from polaris_fast.judge.journal import queries
from polaris_fast.types import Failed

PRICES = {"price_input": 1000.0, "price_output": 10_000.0}  # USD; a call: 100 and 10 tokens, 0.2


def costs(make_pool, fault: play.Behaviour, tmp_path) -> queries.DayCost:
    """Of one story: an answer that goes wrong, and a whole one."""
    path = tmp_path / "journal.sqlite"
    with (
        ScriptedServer([fault, play.ok(40)]) as server,
        make_pool(server.base_url, journal=str(path), timeout_s=0.3, **PRICES) as pool,
    ):
        pool.submit(JudgeJob("0", "p", "A story.")).result(timeout=20)
        spent_usd = pool.health().spent_usd
    assert len(server.requests) == 2
    with queries.reading(path) as connection:
        days = queries.costs_by_day(connection)
    assert sum(day.cost_usd or 0.0 for day in days) == pytest.approx(spent_usd)
    assert spent_usd == pytest.approx(0.2 + sum(day.probable_usd for day in days))
    return next((day for day in days if day.probable_usd), days[0])


@pytest.mark.parametrize(
    "fault",
    [
        play.reset_mid_body(),
        wire.eof_mid_body(),
        play.reset_at_once(),
        play.not_json(),
        wire.hang(),
    ],
    ids=["reset in the body", "end in the body", "reset", "no JSON", "no answer in time"],
)
def test_an_answer_that_never_came_whole_is_probably_paid_for(make_pool, fault, tmp_path):
    assert costs(make_pool, fault, tmp_path).probable_usd > 0.2


@pytest.mark.parametrize(
    "fault", [play.status(503), wire.error_with_status_200()], ids=["503", "an error with 200"]
)
def test_an_answer_that_says_it_failed_is_free(make_pool, fault, tmp_path):
    assert costs(make_pool, fault, tmp_path).probable_usd == 0.0


def test_without_a_connection_nothing_is_paid(make_pool):
    server = ScriptedServer()
    with make_pool(server.base_url, max_attempts=2, **PRICES) as pool:
        pool.submit(JudgeJob("0", "p", "One.")).result(timeout=20)
        spent_usd = pool.health().spent_usd
        server.close()
        time.sleep(0.05)  # the open connection ends
        pool.submit(JudgeJob("1", "p", "Two.")).result(timeout=20)
        assert pool.health().spent_usd == spent_usd


def test_a_connection_that_is_not_opened_in_time_is_free(make_pool):
    with (
        ScriptedServer() as server,
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_connection(full.getsockname()),  # nobody accepts: there is room for no other
        make_pool(server.base_url, max_attempts=1, connect_timeout_s=0.1, **PRICES) as pool,
    ):
        pool._endpoints[Tier.MAIN].client._base_url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        outcome = pool.submit(JudgeJob("0", "p", "One.")).result(timeout=20)
        spent_usd = pool.health().spent_usd
    assert isinstance(outcome, Failed) and outcome.kind == "timeout"
    assert spent_usd == 0.0
