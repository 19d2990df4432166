"""Many calls with 30 % faulty first attempts: nothing lost, nothing wrong, little waste.

The benchmark of the same name does it with 10,000 calls and looks at the clock as well.
"""

from __future__ import annotations

import math

from benchmarks.scripted_endpoint import STATED_FAULTS, Latency, Limits, Script, ScriptedServer
from polaris_fast.judge import JudgeJob
from polaris_fast.judge.flow import allowance
from polaris_fast.types import Failed, Scored

NUM_CALLS, MAX_EXTRA = 600, 1.15
MEMORY = 60  # calls whose retries the budget keeps: the share of all that 1,000 are of 10,000
LIMITS = {
    "timeout_s": 1.0,
    "max_concurrency": 32,
    "retry_budget": 0.5,
    "hedge_budget": 0.0,  # so that each call is either a first one or forced
}


def test_faulty_first_attempts_lose_nothing(make_pool, monkeypatch):
    monkeypatch.setattr(allowance, "MEMORY", MEMORY)
    script = Script(seed=1, faults=STATED_FAULTS, latency=Latency(0.01, 0.5, tail=0.01))
    stories = [f"Story number {i}: the bell rang over the harbour." for i in range(NUM_CALLS)]
    with ScriptedServer(script, limits=Limits(concurrency=64), keep_requests=False) as server:
        with make_pool(server.base_url, **LIMITS) as pool:
            futures = [
                pool.submit(JudgeJob(f"0/{i}/0", "A prompt.", s)) for i, s in enumerate(stories)
            ]
            outcomes = [future.result(timeout=60) for future in futures]
            metrics = pool.take_metrics()
    scored = [o for o in outcomes if isinstance(o, Scored)]
    failed = sum(isinstance(o, Failed) for o in outcomes)
    assert len(scored) + failed + metrics["judge/rejected"] == NUM_CALLS
    assert metrics["judge/submitted"] == NUM_CALLS
    assert len(scored) >= 0.995 * NUM_CALLS
    for story, outcome in zip(stories, outcomes, strict=True):
        if isinstance(outcome, Scored):
            assert math.isclose(outcome.quality, script.truth(story).quality, abs_tol=1e-12)
            assert all(map(math.isfinite, outcome.dimensions.values()))

    ledger = server.ledger.summary()
    forced = sum(len(script.until_scored(story)) - 1 for story in stories)
    assert ledger.calls - NUM_CALLS <= MAX_EXTRA * forced
    assert ledger.repeated_judgements == 0
    met = {k.rpartition("/")[2]: v for k, v in metrics.items() if k.startswith("judge/faults/")}
    assert met == ledger.faults  # every failure under its class
