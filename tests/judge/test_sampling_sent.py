"""A temperature or nucleus of null is not sent: some models refuse any."""

from __future__ import annotations

import pytest

from benchmarks.scripted_endpoint import ScriptedServer
from polaris_fast.judge import JudgeJob
from polaris_fast.types import Scored


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({}, {"temperature": 0.2, "top_p": 0.9}),
        ({"temperature": 0.0, "top_p": None}, {"temperature": 0.0}),
        ({"temperature": None, "top_p": None}, {}),
    ],
)
def test_only_what_is_set_is_sent(make_pool, settings, sent):
    with ScriptedServer() as server, make_pool(server.base_url, **settings) as pool:
        assert isinstance(pool.submit(JudgeJob("0", "p", "A bell rang.")).result(), Scored)
    (request,) = server.requests
    assert {k: v for k, v in request.body.items() if k in ("temperature", "top_p")} == sent
