"""The endpoint that plays a script: the same by every path, and an honest witness."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections import Counter

import pytest

from benchmarks.scripted_endpoint import (
    FAULT_CLASSES,
    STATED_FAULTS,
    Attempt,
    Latency,
    Limits,
    Script,
    ScriptedProcess,
    ScriptedServer,
    ideal_seconds,
)
from benchmarks.scripted_endpoint.limits import Gate
from polaris_fast.judge.judgement import parse_judgement
from polaris_fast.judge.request import build_messages

STORIES = [f"Story number {i}: the bell rang once more over the harbour." for i in range(2000)]


def ask(base_url: str, story: str) -> dict:
    """One chat completion, as JSON."""
    data = json.dumps({"model": "m", "messages": build_messages("A prompt.", story)}).encode()
    request = urllib.request.Request(f"{base_url}/chat/completions", data)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def content(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"]


def test_the_script_follows_from_seed_story_and_attempt_alone():
    script, again = (Script(seed=3, faults=STATED_FAULTS, latency=Latency(1.0)) for _ in range(2))
    forwards = {s: script.until_scored(s) for s in STORIES[:50]}
    assert {s: again.until_scored(s) for s in reversed(STORIES[:50])} == forwards
    other = Script(seed=4, faults=STATED_FAULTS, latency=Latency(1.0))
    assert any(other.until_scored(s) != chain for s, chain in forwards.items())
    assert any(other.truth(s) != script.truth(s) for s in forwards)


def test_first_attempts_meet_the_stated_shares():
    script = Script(seed=1, faults=STATED_FAULTS)
    met = Counter(script.attempt(story, 0).fault for story in STORIES)
    for fault, share in STATED_FAULTS.items():
        spread = (share * (1 - share) / len(STORIES)) ** 0.5
        assert met[fault] / len(STORIES) == pytest.approx(share, abs=4 * spread)


def test_latency_has_the_stated_median_and_tail():
    script = Script(latency=Latency(2.0, 0.5, tail=0.1, tail_factor=100))
    seconds = sorted(script.attempt(story, 0).latency_s for story in STORIES)
    assert seconds[len(seconds) // 2] == pytest.approx(2.0, rel=0.2)
    assert sum(s > 40 for s in seconds) / len(seconds) == pytest.approx(0.1, abs=0.03)


def test_every_answered_shape_reads_as_the_truth():
    script = Script(seed=2, quirks=1.0)
    with ScriptedServer(script) as server:
        for story in STORIES[:30]:
            judgement = parse_judgement(content(ask(server.base_url, story)), story)
            assert judgement.quality == script.truth(story).quality
            assert judgement.scores == script.truth(story).scores
    assert set(server.ledger.summary().variants) == {"fenced", "wrong total"}


def test_another_process_with_the_seed_plays_the_same():
    script = Script(seed=9, faults={"invalid": 0.5}, quirks=0.5)
    with ScriptedServer(script) as here, ScriptedProcess(script) as there:
        for story in STORIES[:10]:
            for _ in range(2):
                assert ask(here.base_url, story) == ask(there.base_url, story)
        assert there.by_story() == here.ledger.by_story()
        assert there.ledger() == here.ledger.summary()


def test_the_ledger_counts_what_was_answered_and_billed():
    script = Script(faults={"invalid": 1.0}, again=0.0)
    with ScriptedServer(script) as server:
        for _ in range(3):  # one invalid answer, then two judgements
            ask(server.base_url, STORIES[0])
    summary = server.ledger.summary()
    assert (summary.calls, summary.stories, summary.paid) == (3, 1, 3)
    assert (summary.judgements, summary.repeated_judgements) == (2, 1)
    assert summary.faults == {"invalid": 1}


def test_what_is_over_the_limits_is_throttled_and_uses_up_no_attempt():
    script = Script(latency=Latency(5.0))
    with ScriptedServer(script, limits=Limits(concurrency=0)) as server:
        with pytest.raises(urllib.error.HTTPError, match="429"):
            ask(server.base_url, STORIES[0])
    assert server.ledger.summary().turned_away == {"concurrency": 1}
    assert [account["attempts"] for account in server.ledger.by_story().values()] == [0]


def test_the_rate_limit_says_when_to_come_back():
    now = 100.0
    gate = Gate(Limits(requests_per_minute=120), clock=lambda: now)  # two a second
    assert [gate.turned_away(0) for _ in range(3)] == [None, None, ("rate", 0.5)]
    now += 0.5
    assert gate.turned_away(0) is None


def test_unknown_fault_classes_and_impossible_shares_are_refused():
    with pytest.raises(ValueError, match="gremlins"):
        Script(faults={"gremlins": 0.1})
    with pytest.raises(ValueError, match="add up"):
        Script(faults=dict.fromkeys(FAULT_CLASSES, 0.5))


def test_ideal_schedule_by_hand():
    answered, throttled = Attempt("", "plain", 2.0), Attempt("throttle", "529", 0.0, 3.0)
    hung = Attempt("timeout", "hang", 0.0)

    def ideal(chains, concurrency):
        return ideal_seconds(chains, concurrency=concurrency, timeout_s=4.0)

    assert ideal([[answered]] * 4, 2) == 4.0
    assert ideal([[throttled, answered]], 1) == 5.0
    assert ideal([[throttled, answered], [answered]], 1) == 5.0  # the wait holds no slot
    assert ideal([[hung, answered], [answered], [answered]], 2) == 6.0  # the long chain first
