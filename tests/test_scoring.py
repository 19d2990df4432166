"""From finished rows to scored groups: order, failures, human scores, time waited."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from polaris_fast.config import Config
from polaris_fast.config_file import load_config
from polaris_fast.judge import JudgeJob
from polaris_fast.scoring import JudgeDown, StepScorer
from polaris_fast.types import (
    Failed,
    Group,
    Outcome,
    Rejected,
    Row,
    RowKind,
    Scored,
    StoryRecord,
    UserError,
)

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


class AtOnce(ByHand):
    """Gives some rows an outcome of their own, as often as they are asked for."""

    def __init__(self, outcomes: dict[str, Outcome]) -> None:
        super().__init__()
        self.outcomes = outcomes

    def submit(self, job: JudgeJob) -> Future[Outcome]:
        future = super().submit(job)
        future.set_result(self.outcomes.get(job.job_id, Scored(quality=0.5)))
        return future


def _rounds(groups: list[Group], outcome: Outcome, num: int, **how: bool) -> list[JudgeJob]:
    """The jobs of a step whose first `num` rows end in an outcome without a score each time."""
    rows = [row for group in groups for row in group.rows]
    judge = AtOnce({row.row_id: outcome for row in rows[:num]})
    scorer = StepScorer(judge, _config())  # 10 % may fail, two more rounds
    for row in rows:
        scorer.submit(row)
    assert len(list(scorer.ready_groups(groups, fixed_order=True, **how))) == len(groups)
    return judge.jobs


def test_rows_that_stay_refused_do_not_stop_a_run_that_would_meet_them_again() -> None:
    assert len(_rounds(_groups(2), Rejected("no"), 2)) == 6 + 2 * 2
    with pytest.raises(JudgeDown, match="2 of 6 rows"):
        _rounds(_groups(2), Failed("503"), 2)


def test_a_judge_that_refuses_most_of_a_step_stops_the_run() -> None:
    with pytest.raises(JudgeDown, match="4 of 6 rows"):
        _rounds(_groups(2), Rejected("no"), 4)


def test_an_evaluation_is_judged_again_and_goes_on_whatever_fails() -> None:
    assert len(_rounds(_groups(2), Failed("503"), 6, may_stop=False)) == 6 + 2 * 6


@pytest.mark.parametrize("kind", ["budget", "quota", "journal"])
def test_when_nothing_more_is_judged_one_lost_row_is_enough_to_end_the_step(kind: str) -> None:
    groups = _groups(4)
    judge, scorer = _submit(groups, _config(judge__max_failed_fraction="0.5"))
    ready = scorer.ready_groups(groups, fixed_order=True)
    for row in groups[0].rows:
        judge.answer(row)
    assert next(ready).index == 0
    judge.answer(groups[1].rows[0], Failed("money is gone", kind, final=True))
    rest = [row for group in groups[1:] for row in group.rows][1:]
    threading.Timer(0.02, lambda: [judge.answer(row) for row in rest]).start()
    with pytest.raises(JudgeDown, match=r"^money is gone\. .*resume_from_checkpoint"):
        next(ready)
    # What was under way is paid for: it is waited for, and in the journal.
    assert all(isinstance(row.outcome, Scored) for row in rest)
    assert len(judge.jobs) == 12


def test_failures_of_all_rounds_of_a_step_count_together() -> None:
    judge, config = ByHand(), _config(judge__max_rejudge_rounds="0")  # 10 % may fail
    scorer = StepScorer(judge, config)
    groups = _groups(8)
    for first, failed in ((0, 1), (4, 2)):
        part = groups[first : first + 4]
        for group in part:
            for row in group.rows:
                scorer.submit(row)
        for i, row in enumerate(row for group in part for row in group.rows):
            judge.answer(row, Failed("503") if i < failed else None)
        if first == 0:
            list(scorer.ready_groups(part, fixed_order=True))
    with pytest.raises(JudgeDown, match=r"2 of 24 rows"):
        list(scorer.ready_groups(groups[4:], fixed_order=True))


def test_a_users_reward_that_fails_too_often_is_named() -> None:
    groups = _groups(2)
    config = _config(judge__max_rejudge_rounds="0", reward__function="my_rewards:brevity")
    judge, scorer = _submit(groups, config)
    for group in groups:
        for row in group.rows:
            judge.answer(row, Failed("my_rewards:brevity returned None", "user_none"))
    with pytest.raises(JudgeDown, match=r"^reward\.function: 6 of 6 .* Mend 'my_rewards:brevity'"):
        list(scorer.ready_groups(groups, fixed_order=False))


CLOSE = {"judge__resample_below_sigmas": "2", "judge__noise_std": "0.05"}


def _answer_close(judge: ByHand, groups: list[Group]) -> None:
    """The first group spreads by less than 2 sigma, the second by more."""
    for group, step in zip(groups, (0.02, 0.2), strict=True):
        for row in group.rows:
            judge.answer(row, Scored(quality=0.4 + step * row.slot))


def test_a_group_within_the_judges_noise_is_judged_twice_and_once_only() -> None:
    groups = _groups(2, size=4, human=True)
    judge, scorer = _submit(groups, _config(**CLOSE))
    _answer_close(judge, groups)
    ready = scorer.ready_groups(groups, fixed_order=False)
    assert next(ready).index == 1
    again = judge.jobs[8:]
    assert [job.job_id for job in again] == ["0/0/0", "0/0/1", "0/0/2"]  # not the human row
    assert {(job.samples, job.needed, job.first_sample) for job in again} == {(2, 1, 0)}
    for row, quality in zip(groups[0].rows, (0.1, 0.11, 0.12), strict=False):
        judge.answer(row, Scored(quality=quality))
    assert next(ready).index == 0
    assert [r.reward.quality for r in groups[0].rows if r.reward] == [0.1, 0.11, 0.12, 0.46]
    assert len(judge.jobs) == 11


@pytest.mark.parametrize(
    "changes", [{}, CLOSE | {"reward__function": "my_rewards:brevity"}], ids=["off", "user reward"]
)
def test_no_group_is_judged_twice_unless_asked_for(changes: dict[str, str]) -> None:
    groups = _groups(2)
    judge, scorer = _submit(groups, _config(**changes))
    _answer_close(judge, groups)
    assert len(list(scorer.ready_groups(groups, fixed_order=True))) == 2
    assert len(judge.jobs) == 6


def test_judging_twice_needs_the_judges_noise() -> None:
    with pytest.raises(UserError, match=r"resample_below_sigmas \(2\) needs noise_std.*calibrate"):
        _config(judge__resample_below_sigmas="2")


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
