"""Which groups train: spread above the judge's noise, enough scored rows; why others do not."""

from __future__ import annotations

import pytest

from polaris_fast.advantages import assign_advantages
from polaris_fast.config import Config, HRIConfig, JudgeConfig, RewardConfig
from polaris_fast.types import Group, RewardParts, Row, RowKind, Scored, StoryRecord

RECORD = StoryRecord("r", "p", 5)


def group(index: int, *rewards: float | None, human: float | None = None) -> Group:
    rows = [
        Row(f"0/{index}/{slot}", index, slot, RowKind.POLICY, RECORD, [1])
        for slot in range(len(rewards))
    ]
    for row, reward in zip(rows, rewards, strict=True):
        if reward is not None:
            row.outcome = Scored(reward)
            row.reward = RewardParts(reward, reward, 1.0, 0.0, 0.0, 5)
    if human is not None:
        row = Row(f"0/{index}/h", index, len(rows), RowKind.HUMAN, RECORD, [1])
        row.reward = RewardParts(human, human, 1.0, 0.0, 0.0, 5)
        rows.append(row)
    return Group(index, RECORD, rows)


def config(noise_std: float | None, **changes) -> Config:
    return Config(judge=JudgeConfig(noise_std=noise_std), **changes)


NARROW, WIDE = (0.50, 0.51, 0.52, 0.53), (0.2, 0.4, 0.6, 0.8)  # std .0129 and .258


def test_a_group_that_spreads_less_than_the_judges_noise_is_left_out_and_named():
    groups = [group(0, *NARROW), group(1, *WIDE)]
    assign_advantages(groups, config(0.05), 0.0)
    assert [g.dropped for g in groups] == ["noise_floor", None]
    assert not any(row.trained or row.advantage for row in groups[0].rows)
    assert all(row.trained for row in groups[1].rows)


def test_no_noise_known_leaves_nothing_out_and_changes_nothing():
    for noise in (None, 0.0):
        groups = [group(0, *NARROW), group(1, *WIDE)]
        assign_advantages(groups, config(noise), 0.0)
        assert [g.dropped for g in groups] == [None, None]
    kept = [group(0, *WIDE)]
    assign_advantages(kept, config(0.05), 0.0)
    assert [r.advantage for r in kept[0].rows] == [r.advantage for r in groups[1].rows]


def test_the_human_rows_reward_does_not_lift_a_group_over_the_floor():
    groups = [group(0, *NARROW, human=1.0)]
    assign_advantages(groups, config(0.05), 0.4)
    assert groups[0].dropped == "noise_floor"
    assert not groups[0].rows[-1].trained


def test_other_reasons_keep_their_names():
    groups = [group(0, 0.5, 0.5, 0.5, 0.5), group(1, 0.5, None, None, None), group(2, None, None)]
    assign_advantages(groups, config(0.05), 0.0)
    assert [g.dropped for g in groups] == ["zero_spread", "too_few_scored", "too_few_scored"]


def test_a_users_own_reward_has_no_judges_noise():
    groups = [group(0, *NARROW)]
    own = config(0.05, reward=RewardConfig(function="m:f"), hri=HRIConfig(mode="off"))
    assign_advantages(groups, own, 0.0)
    assert groups[0].dropped is None


def test_the_floor_is_no_negative_number():
    with pytest.raises(ValueError, match="noise_std"):
        JudgeConfig(noise_std=-0.1)
