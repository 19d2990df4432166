"""From finished rows to scored groups: order, failures, human scores, time waited."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from polaris_fast.config import Config
from polaris_fast.config_file import load_config
from polaris_fast.judge import JudgeJob
from polaris_fast.scoring import JudgeDown, StepScorer
from polaris_fast.types import Failed, Group, Outcome, Row, RowKind, Scored, StoryRecord

RECORD = StoryRecord(uid="r", prompt="p", target_word_count=5, story="One two three four five.")


class ByHand:
    """A judge whose answers the test gives, in any order."""

    def __init__(self) -> None:
        self.jobs: list[JudgeJob] = []
        self.futures: dict[str, list[Future[Outcome]]] = {}

    def __enter__(self) -> ByHand:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def submit(self, job: JudgeJob) -> Future[Outcome]:
        self.jobs.append(job)
        future: Future[Outcome] = Future()
        self.futures.setdefault(job.job_id, []).append(future)
        return future

    def answer(self, row: Row, outcome: Outcome | None = None) -> None:
        self.futures[row.row_id][-1].set_result(outcome or Scored(quality=0.5))

    def outdated(self, group: str) -> frozenset[str]:
        return frozenset()

    def take_metrics(self) -> dict[str, float]:
        return {}


def _config(**overrides: str) -> Config:
    return load_config(None, {k.replace("__", "."): v for k, v in overrides.items()})


def _groups(num_groups: int, size: int = 3, human: bool = False) -> list[Group]:
    groups = []
    for g in range(num_groups):
        rows = [Row(f"0/{g}/{s}", g, s, RowKind.POLICY, RECORD, [1]) for s in range(size)]
        for row in rows:
            row.story = f"Story {g} {row.slot} goes on here."
        if human:
            rows[-1].kind = RowKind.HUMAN
        groups.append(Group(g, RECORD, rows))
    return groups


def _submit(groups: list[Group], config: Config) -> tuple[ByHand, StepScorer]:
    judge = ByHand()
    scorer = StepScorer(judge, config)
    for group in groups:
        for row in group.rows:
            scorer.submit(row)
    return judge, scorer


def test_groups_come_earliest_ready_first() -> None:
    groups = _groups(3)
    judge, scorer = _submit(groups, _config())
    ready = scorer.ready_groups(groups, fixed_order=False)
    for row in groups[2].rows:
        judge.answer(row)
    assert next(ready).index == 2
    for row in groups[0].rows + groups[1].rows:
        judge.answer(row)
    assert [g.index for g in ready] == [0, 1]


def test_fixed_order_waits_for_the_first_group() -> None:
    groups = _groups(2)
    judge, scorer = _submit(groups, _config())
    ready = scorer.ready_groups(groups, fixed_order=True)
    for row in groups[1].rows:
        judge.answer(row)
    later = threading.Timer(0.05, lambda: [judge.answer(row) for row in groups[0].rows])
    later.start()
    assert [g.index for g in ready] == [0, 1]
    assert scorer.clock.seconds("judge_exposed") >= 0.04


def test_a_failed_row_has_no_reward_and_its_group_comes_last() -> None:
    groups = _groups(4)
    judge, scorer = _submit(groups, _config())
    for group in groups:
        for row in group.rows:
            bad = row.row_id == "0/0/1"
            judge.answer(row, Failed("timed out", "timeout") if bad else None)
    assert [g.index for g in scorer.ready_groups(groups, fixed_order=True)] == [1, 2, 3, 0]
    assert groups[0].rows[1].reward is None
    assert len(judge.jobs) == 12  # under the allowed share: not asked again


def test_too_many_failures_hold_the_groups_and_are_judged_again() -> None:
    groups = _groups(2)
    judge, scorer = _submit(groups, _config())
    for group in groups:
        for row in group.rows:
            judge.answer(row, Failed("503") if row.slot == 0 else None)
    ready = scorer.ready_groups(groups, fixed_order=False)

    def mend() -> None:
        for group in groups:
            judge.answer(group.rows[0], Scored(quality=0.25))

    threading.Timer(0.05, mend).start()
    assert {g.index for g in ready} == {0, 1}
    assert all(isinstance(r.outcome, Scored) and r.reward for g in groups for r in g.rows)
    assert len(judge.jobs) == 8


def test_a_judge_that_stays_down_ends_the_step_with_a_remedy() -> None:
    groups = _groups(2)
    judge, scorer = _submit(groups, _config(judge__max_rejudge_rounds="0"))
    for group in groups:
        for row in group.rows:
            judge.answer(row, Failed("connection refused", "transient"))
    with pytest.raises(JudgeDown, match=r"6 of 6 rows .*connection refused.*resume_from"):
        list(scorer.ready_groups(groups, fixed_order=False))


def test_a_human_story_is_judged_k_times_and_a_rollout_once() -> None:
    groups = _groups(1, human=True)
    judge, _ = _submit(groups, _config(hri__num_judge_samples="3"))
    assert [j.samples for j in judge.jobs] == [1, 1, 3]


def test_a_fixed_human_reward_is_the_reward_itself_and_costs_no_call() -> None:
    groups = _groups(1, human=True)
    judge, scorer = _submit(groups, _config(hri__fixed_reward="1.5"))
    for row in groups[0].rows[:2]:
        judge.answer(row)
    (group,) = scorer.ready_groups(groups, fixed_order=False)
    assert len(judge.jobs) == 2
    assert group.rows[2].reward is not None and group.rows[2].reward.total == 1.5


def test_an_empty_story_is_not_sent_and_gets_its_penalties() -> None:
    groups = _groups(1)
    groups[0].rows[0].story = "  "
    judge, scorer = _submit(groups, _config())
    for row in groups[0].rows[1:]:
        judge.answer(row)
    (group,) = scorer.ready_groups(groups, fixed_order=False)
    reward = group.rows[0].reward
    assert len(judge.jobs) == 2 and reward is not None
    assert reward.quality == 0.0 and reward.blank_penalty == 1.0 and reward.total < -1


def _stop() -> None:
    raise KeyboardInterrupt


def test_a_stop_request_ends_the_wait() -> None:
    groups = _groups(1)
    scorer = StepScorer(ByHand(), _config(), check_stop=_stop)
    for row in groups[0].rows:
        scorer.submit(row)
    with pytest.raises(KeyboardInterrupt):
        list(scorer.ready_groups(groups, fixed_order=False))


def test_the_judge_never_sees_the_length_target_in_the_prompt() -> None:
    groups = _groups(1)
    judge, _ = _submit(groups, _config())
    assert all(job.prompt == RECORD.prompt for job in judge.jobs)
    assert judge.jobs[0].columns["target_word_count"] == 5
