"""A judge that struggles is shown before it fails; one that is well is not shown at all."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from polaris_fast.judge.health import JudgeHealth
from polaris_fast.progress import LiveView, PlainView, QuietView
from polaris_fast.progress.judge import STALL_S, WINDOW_S, JudgeWatch, State

WELL = JudgeHealth(
    jobs_in_flight=48,
    requests_in_flight=32,
    waiting=16,
    limit=32,
    max_limit=32,
    num_calls=200,
    latency_p95_s=4.2,
    spent_usd=0.5,
)


class Scene:
    """A judge whose health the test sets, and a clock."""

    def __init__(self) -> None:
        self.now, self.health = 0.0, WELL
        self.watch = JudgeWatch(lambda: self.health, lambda: self.now)
        self.watch.look()

    def later(self, seconds: float = 1.0, **changes):
        """The look after some time and these changes."""
        self.now += seconds
        self.health = replace(self.health, **changes)
        return self.watch.look()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_judge_that_is_well_gives_nothing_to_say(scene):
    look = scene.later(num_calls=300, num_faults=12, num_retries=12, jobs_in_flight=40)
    assert look.state is State.WELL
    assert look.troubles == ()
    assert look.numbers == (
        "32 of 32 in flight",
        "16 waiting",
        "p95 4.2 s",
        "12 retries",
        "$0.50",
    )


def test_failing_tries_are_told_by_their_share(scene):
    look = scene.later(num_calls=240, num_faults=12)
    assert look.state is State.STRUGGLING
    assert look.troubles == ("30% of tries fail",)


def test_a_few_tries_say_nothing(scene):
    assert scene.later(num_calls=205, num_faults=4).state is State.WELL


def test_throttling_is_told_apart_from_failures(scene):
    look = scene.later(num_calls=240, num_faults=12, num_throttles=12, limit=20)
    assert look.troubles == ("throttled to 20 of 32 requests at once",)


def test_a_cut_of_the_limit_is_told_at_once(scene):
    look = scene.later(num_calls=203, throttle_cuts=1, limit=25)
    assert look.troubles == ("throttled to 25 of 32 requests at once",)


def test_trouble_is_forgotten_after_a_window_without_any(scene):
    assert scene.later(num_calls=240, num_faults=20).state is State.STRUGGLING
    scene.later(num_calls=280)
    assert scene.later(WINDOW_S, num_calls=320, jobs_in_flight=4).state is State.WELL


def test_a_judge_that_hangs_is_told_before_its_timeout(scene):
    for _ in range(3):
        assert scene.later(STALL_S / 3 - 0.1).state is State.WELL
    assert scene.later(1.3).troubles == ("no judgement for 1:01",)
    assert scene.later(1.0, jobs_in_flight=47).state is State.WELL


def test_time_without_a_look_is_no_hang(scene):
    assert scene.later(10 * STALL_S).state is State.WELL


def test_slow_answers_are_no_hang(scene):
    scene.later(1.0, latency_p95_s=100.0, jobs_in_flight=47)
    for _ in range(20):
        assert scene.later(10.0).state is State.WELL


def test_an_idle_judge_does_not_hang(scene):
    scene.later(jobs_in_flight=0, requests_in_flight=0, waiting=0)
    assert scene.later(10 * STALL_S).state is State.WELL


def test_an_open_breaker_says_why_and_for_how_long(scene):
    look = scene.later(breaker="open", breaker_reason="HTTP 401", paused_s=65.0)
    assert look.state is State.PAUSED
    assert look.troubles == ("paused for 1:05: HTTP 401",)
    assert scene.later(breaker="given_up").troubles[0].startswith("given up")


def test_money_running_out_is_told(scene):
    assert scene.later(max_cost_usd=1.0).state is State.WELL
    assert scene.later(spent_usd=0.95).troubles == ("$0.95 of $1.00 are spent",)


def test_health_is_not_asked_more_often_than_needed(scene):
    asked = []
    watch = JudgeWatch(lambda: asked.append(1) or WELL, lambda: scene.now)
    for _ in range(100):
        scene.now += 0.01
        watch.look()
    assert len(asked) <= 3


# views -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [PlainView, QuietView])
def test_line_views_speak_once_at_each_change(make):
    stream, scene = io.StringIO(), Scene()
    view = make(stream)
    view._run.now = lambda: scene.now
    view.watch_judge(lambda: scene.health)
    for calls, faults in ((200, 0), (240, 20), (260, 25), (280, 30)):
        scene.now += 1
        scene.health = replace(scene.health, num_calls=calls, num_faults=faults)
        view.tick()
    scene.now += 2 * WINDOW_S
    scene.health = replace(scene.health, num_calls=400, jobs_in_flight=3)
    view.tick()
    scene.now += 1
    view.tick()
    assert stream.getvalue().splitlines() == [
        "warning: judge: 50% of tries fail (32 of 32 in flight, 16 waiting, p95 4.2 s, $0.50)",
        "judge: well again",
    ]


def test_the_panel_shows_the_judge_only_in_trouble():
    console, scene = Console(file=io.StringIO(), width=100), Scene()
    view = LiveView(console, now=lambda: scene.now)
    view.watch_judge(lambda: scene.health)

    def frame() -> str:
        scene.now += 1
        with console.capture() as captured:
            console.print(view._frame())
        return captured.get()

    assert "judge" not in frame()
    scene.health = replace(WELL, breaker="open", breaker_reason="no credit left", paused_s=5)
    shown = frame()
    assert "judge  paused for 0:05: no credit left" in shown
    assert "32 of 32 in flight" in shown
