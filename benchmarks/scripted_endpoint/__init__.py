"""A judge endpoint that plays a script: for tests, benchmarks and trying out a judge's troubles.

By hand, one behaviour a request (every failure a judge client meets is in `behaviours` and `wire`):

    with ScriptedServer([ok(50), status(429, headers={"Retry-After": "0"}), ok(50)]) as server:
        server.base_url, server.requests

By seed, where truth, faults and latencies follow from (seed, story, attempt number):

    script = Script(seed=1, faults=STATED_FAULTS, latency=Latency(0.3, 0.5))
    with ScriptedServer(script, concurrency_limit=64) as server:
        script.truth(story).quality, server.ledger.summary()

In a process of its own, so that it takes no time from what is measured:

    python -m benchmarks.scripted_endpoint --seed 1 --faults stated --latency 0.3,0.5
    with ScriptedProcess(seed=1, faults=STATED_FAULTS) as server: server.base_url, server.ledger()

`ideal` says how soon a scheduler that knew the whole script could be done.
"""

from __future__ import annotations

from .behaviours import (
    Behaviour,
    answer_tree,
    body,
    completion,
    fenced,
    filtered,
    missing_dimension,
    null_content,
    ok,
    refusal,
    text,
    truncated,
    wrong_total,
)
from .ideal import ideal_seconds
from .ledger import Ledger, LedgerSummary
from .limits import Limits
from .process import ScriptedProcess
from .script import (
    FAULT_CLASSES,
    STATED_FAULTS,
    Attempt,
    Latency,
    Script,
    Truth,
)
from .server import KEY_VARIABLE, ScriptedServer, Seen
from .wire import not_json, reset_at_once, reset_mid_body, slow, status

__all__ = [
    "FAULT_CLASSES",
    "KEY_VARIABLE",
    "STATED_FAULTS",
    "Attempt",
    "Behaviour",
    "Latency",
    "Ledger",
    "LedgerSummary",
    "Limits",
    "Script",
    "ScriptedProcess",
    "ScriptedServer",
    "Seen",
    "Truth",
    "answer_tree",
    "body",
    "completion",
    "fenced",
    "filtered",
    "ideal_seconds",
    "missing_dimension",
    "not_json",
    "null_content",
    "ok",
    "refusal",
    "reset_at_once",
    "reset_mid_body",
    "slow",
    "status",
    "text",
    "truncated",
    "wrong_total",
]
