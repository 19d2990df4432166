"""Canaries: broken stories score less, a judge that drifts is told apart from one that is noisy."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import Future

import pytest

from polaris_fast.config import Config, JudgeConfig, RewardConfig
from polaris_fast.judge import JudgeJob, JudgePool
from polaris_fast.judge.canary import BASELINE_SAMPLES, PROMPT, CanaryWatch, canaries, probe_job
from polaris_fast.judge.drift import DriftWatch
from polaris_fast.judge.heuristic import judge_story_json
from polaris_fast.judge.injection import scan
from polaris_fast.judge.judgement import parse_judgement
from polaris_fast.types import Failed, Outcome, RowKind, Scored

TRUE = {"human": 0.60, "truncated": 0.35, "repeated": 0.10, "purple": 0.05, "injected": 0.55}


class FakeScorer:
    """Keeps jobs; the test says when and what they are answered."""

    def __init__(self) -> None:
        self.waiting: list[tuple[JudgeJob, Future[Outcome]]] = []
        self.jobs: list[JudgeJob] = []

    def submit(self, job: JudgeJob) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        self.waiting.append((job, future))
        self.jobs.append(job)
        return future

    def answer(self, source: random.Random, *, shift: float = 0.0, sigma: float = 0.02) -> None:
        for job, future in self.waiting:
            name = job.job_id.split("/")[1]
            future.set_result(Scored(TRUE[name] + shift + source.gauss(0, sigma)))
        self.waiting.clear()

    def fail(self) -> None:
        for _, future in self.waiting:
            future.set_result(Failed("away", "timeout"))
        self.waiting.clear()


@pytest.fixture
def scorer() -> FakeScorer:
    return FakeScorer()


@pytest.fixture
def alarms() -> list[str]:
    return []


@pytest.fixture
def watch(scorer: FakeScorer, alarms: list[str]) -> CanaryWatch:
    return CanaryWatch(scorer, JudgeConfig(canary_steps=5), run="r", warn=alarms.append)


# the stories -----------------------------------------------------------------------------------


def test_the_whole_story_wins_with_the_local_judge():
    scores = {
        name: parse_judgement(judge_story_json(PROMPT, story), story).quality
        for name, story in canaries().items()
    }
    best = scores.pop("human")
    assert all(score < best - 0.05 for score in scores.values())


def test_each_is_broken_in_its_own_way():
    stories = canaries()
    assert list(stories) == list(TRUE)
    assert stories["human"].startswith(stories["truncated"])
    assert stories["truncated"][-1].isalnum()
    assert {name for name, story in stories.items() if scan(story)} == {"injected"}
    assert json.dumps(probe_job().story) == json.dumps(stories["human"])


# drift -----------------------------------------------------------------------------------------


def test_noise_alone_raises_no_alarm_in_many_passes():
    source = random.Random(0)
    for _ in range(20):
        watch = DriftWatch("human")
        draw = lambda n: {k: [t + source.gauss(0, 0.02) for _ in range(n)] for k, t in TRUE.items()}
        assert watch.compare(draw(BASELINE_SAMPLES)).alarms == []
        alarms = [a for _ in range(20) for a in watch.compare(draw(1)).alarms]
        assert len(alarms) <= 2  # of 100 comparisons, with a sigma of 15 degrees of freedom


@pytest.mark.parametrize("shift", [-0.06, 0.06])
def test_a_small_common_shift_is_seen(shift):
    source = random.Random(1)
    watch = DriftWatch("human")
    watch.compare({k: [t + source.gauss(0, 0.02) for _ in range(4)] for k, t in TRUE.items()})
    result = watch.compare({k: [t + shift] for k, t in TRUE.items()})
    assert "on average" in result.alarms[0]
    assert result.metrics["drift"] == pytest.approx(shift, abs=0.02)
    assert result.metrics["alarm"] == 1.0


def test_one_story_that_moves_is_named():
    watch = DriftWatch("human")
    watch.compare({k: [t - 0.01, t + 0.01] for k, t in TRUE.items()})
    result = watch.compare({k: [t + 0.3 * (k == "purple")] for k, t in TRUE.items()})
    assert len(result.alarms) == 1
    assert "purple" in result.alarms[0]


def test_a_wrong_order_is_told_from_the_first_pass_on():
    watch = DriftWatch("human")
    result = watch.compare({"human": [0.2, 0.2], "purple": [0.5, 0.5]})
    assert "puts the purple story (0.50) above the human one (0.20)" in result.alarms[0]
    again = watch.compare({"human": [0.2], "purple": [0.2001]})
    assert not any("above" in alarm for alarm in again.alarms)  # within the noise


def test_noise_known_from_calibration_widens_the_bounds():
    shifted = {k: [t + 0.05] for k, t in TRUE.items()}
    for least, expected in ((0.0, 1.0), (0.2, 0.0)):
        watch = DriftWatch("human", least_sigma=least)
        watch.compare({k: [t, t] for k, t in TRUE.items()})
        assert watch.compare(shifted).metrics["alarm"] == expected


# the watch -------------------------------------------------------------------------------------


def test_passes_are_sent_when_due_and_never_waited_for(watch, scorer, alarms):
    source = random.Random(2)
    watch.begin(0)
    assert len(scorer.jobs) == 5 * BASELINE_SAMPLES
    assert watch.take() == {}  # nothing has arrived
    scorer.answer(source)
    assert watch.take()["judge/canary/quality/human"] == pytest.approx(0.6, abs=0.05)
    for step in range(1, 5):
        watch.begin(step)
    assert not scorer.waiting
    watch.begin(5)
    assert len(scorer.waiting) == 5
    scorer.answer(source, shift=-0.3)
    metrics = watch.take()
    assert metrics["judge/canary/alarm"] == 1.0
    assert metrics["judge/canary/drift"] < -0.2
    assert alarms
    assert all("sent at step 5" in alarm for alarm in alarms)
    assert watch.take() == {}


def test_every_judgement_is_asked_for_anew_and_by_a_resumed_run_the_same_again(watch, scorer):
    for step in (0, 5, 10):
        watch.begin(step)
        scorer.answer(random.Random(step))
        watch.take()
    asked = [(job.story, job.first_sample) for job in scorer.jobs]
    assert len(set(asked)) == len(asked)
    assert {job.kind for job in scorer.jobs} == {RowKind.CANARY}
    again, other = FakeScorer(), FakeScorer()
    config = JudgeConfig(canary_steps=5)
    CanaryWatch(again, config, run="r", warn=print).begin(7)
    CanaryWatch(other, config, run="another", warn=print).begin(7)
    first = {(job.story, job.first_sample) for job in again.jobs}
    assert first <= set(asked)
    assert not first & {(job.story, job.first_sample) for job in other.jobs}


def test_a_judge_that_is_away_is_no_alarm_and_the_first_pass_is_asked_again(watch, scorer, alarms):
    watch.begin(0)
    scorer.fail()
    assert watch.take() == {
        "judge/canary/missing": 5.0,
        "judge/canary/sigma": pytest.approx(0.005),
        "judge/canary/alarm": 0.0,
    }
    watch.begin(1)
    assert len(scorer.waiting) == 5 * BASELINE_SAMPLES
    assert not alarms


def test_off_by_default(scorer):
    watch = CanaryWatch(scorer, JudgeConfig(), run="r", warn=print)
    watch.begin(0)
    assert not scorer.jobs
    assert watch.take() == {}


def test_the_pool_keeps_canaries_out_of_the_runs_means():
    with JudgePool(JudgeConfig(journal="off")) as pool:
        row = pool.submit(JudgeJob("0/0/0", "A bell.", "The bell rang twice over the harbour."))
        watch = CanaryWatch(pool, JudgeConfig(canary_steps=1), run="r", warn=print)
        watch.begin(0)
        quality = row.result().quality
        while not (found := watch.take()):
            time.sleep(0.005)
        metrics = pool.take_metrics()
    assert metrics["judge/scored"] == 1 + 5 * BASELINE_SAMPLES
    assert metrics["judge/quality"] == pytest.approx(quality)
    assert found["judge/canary/quality/human"] > found["judge/canary/quality/injected"]
    assert (found["judge/canary/alarm"], found["judge/canary/missing"]) == (0.0, 0.0)


def test_a_users_own_reward_has_no_canaries():
    with pytest.raises(ValueError, match="canary_steps"):
        Config(judge=JudgeConfig(canary_steps=1), reward=RewardConfig(function="m:f"))
