"""group_advantages: the recipe's numbers, failed rows, human rows, and odd groups."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_kernels import AdvantageSpec, group_advantages, reference

NAN = math.nan


def run(rewards, groups=None, human=(), spec=None, **options):
    """Advantages of one group (or of `groups`), rows listed in `human` being human."""
    groups = [0] * len(rewards) if groups is None else groups
    is_human = torch.tensor([i in human for i in range(len(rewards))], dtype=torch.bool)
    return group_advantages(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(groups, dtype=torch.int64),
        is_human=is_human,
        spec=AdvantageSpec(**(spec or {})),
        **options,
    )


def test_z_scores_by_hand():
    found = run([1.0, 2.0, 3.0])
    assert found.advantages.tolist() == pytest.approx([-1.0, 0.0, 1.0], abs=1e-5)
    assert found.group_mean.tolist() == [2.0]
    assert found.group_std.tolist() == [1.0]
    assert found.advantages.dtype == torch.float32


def test_human_rows_stay_outside_the_statistics_and_carry_their_weight():
    found = run([1.0, 2.0, 3.0, 6.0], human=[3], human_weight=0.4)
    assert found.advantages.tolist() == pytest.approx([-1.0, 0.0, 1.0, 1.6], abs=1e-5)
    assert found.human_gap.tolist() == pytest.approx([4.0])
    assert found.num_scored.tolist() == [3]


def test_luffy_counts_the_human_row():
    found = run([1.0, 2.0, 3.0, 6.0], human=[3], spec={"human_in_statistics": True},
                human_weight=0.4)  # fmt: skip
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    expected = (values - 3.0) / (values.std() + 1e-6)
    assert found.advantages.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("scale", ["group", "batch"])
def test_equal_rewards_everywhere_give_no_advantage_to_anybody(scale, eps):
    # thirds: their mean rounds, and with it the std
    rewards = [1 / 3, 1 / 3, 1 / 3, 0.9] * 2
    groups = [0] * 4 + [1] * 4
    found = run(rewards, groups, human=(3, 7), spec={"scale": scale, "eps": eps})
    assert found.advantages.tolist() == [0.0] * 8


def test_a_failed_row_is_no_number():
    whole, failed = run([1.0, 2.0, 4.0]), run([1.0, NAN, 2.0, 4.0])
    assert failed.advantages[[0, 2, 3]].tolist() == whole.advantages.tolist()
    assert failed.advantages[1] == 0
    assert failed.used.tolist() == [True, False, True, True]
    marked = run([1.0, 99.0, 2.0, 4.0], valid=torch.tensor([True, False, True, True]))
    assert torch.equal(marked.advantages, failed.advantages)


@pytest.mark.parametrize(
    ("rewards", "min_scored", "used"),
    [
        ([1.0, 2.0, NAN, NAN, NAN], None, False),
        ([1.0, 2.0, 3.0, NAN, NAN], None, True),
        ([1.0, 2.0, 3.0, NAN, NAN, NAN, NAN, NAN], None, False),  # half of 8 is 4
        ([1.0, 2.0], None, True),
        ([1.0, 2.0, NAN, NAN, NAN], 2, True),
        ([1.0], None, False),
        ([NAN, NAN, NAN], None, False),
    ],
)
def test_a_group_needs_enough_scored_rows(rewards, min_scored, used):
    found = run(rewards, spec={"min_scored": min_scored})
    assert found.group_used.tolist() == [used]
    assert found.advantages.isfinite().all()
    if not used:
        assert not found.used.any() and not found.advantages.any()


def test_the_human_row_does_not_help_a_group_to_its_minimum():
    found = run([1.0, 2.0, NAN, NAN, 5.0], human=[4])
    assert not found.used.any()


@pytest.mark.parametrize("reward", [0.1, 0.7, 1 / 3, 12345.678])
@pytest.mark.parametrize("choice", ["keep", "drop"])
def test_equal_rewards_give_zero_advantage_even_to_the_human_row(reward, choice):
    found = run([reward] * 5 + [reward + 1], human=[5], spec={"zero_spread": choice})
    assert found.zero_spread.tolist() == [True]
    assert not found.advantages.any()
    assert found.used.all() == (choice == "keep")


def test_without_scaling_the_human_row_of_a_flat_group_still_teaches():
    found = run([0.5] * 4 + [0.9], human=[4], spec={"scale": "none"}, human_weight=0.5)
    assert found.advantages.tolist() == pytest.approx([0, 0, 0, 0, 0.2])


def test_the_noise_floor_drops_groups_below_it():
    rewards = [0.50, 0.51, 0.49, 0.0, 1.0, 0.5]
    found = run(rewards, [0, 0, 0, 1, 1, 1], spec={"min_std": 0.1})
    assert found.group_used.tolist() == [False, True]
    assert found.used.tolist() == [False] * 3 + [True] * 3


def test_leave_one_out_compares_with_the_peers():
    found = run([1.0, 2.0, 6.0, 5.0], human=[3],
                spec={"baseline": "leave_one_out", "scale": "none"})  # fmt: skip
    assert found.advantages.tolist() == pytest.approx([-3.0, -1.5, 4.5, 2.0])


def test_batch_scaling_uses_one_std_for_all_groups():
    rewards = [0.0, 1.0, 2.0, 10.0, 20.0, 30.0]
    found = run(rewards, [0, 0, 0, 1, 1, 1], spec={"scale": "batch"})
    std = torch.tensor(rewards).std()
    expected = [-1 / std, 0, 1 / std, -10 / std, 0, 10 / std]
    assert found.advantages.tolist() == pytest.approx([float(x) for x in expected], abs=1e-5)


def test_groups_without_rows_are_allowed():
    found = run([1.0, 2.0, 3.0], [2, 2, 2], num_groups=5)
    assert found.group_used.tolist() == [False, False, True, False, False]
    assert found.zero_spread.tolist() == [False] * 5


def test_no_rows_at_all():
    found = run([])
    assert found.advantages.shape == (0,) and found.group_mean.shape == (0,)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-2, 2, width=16), st.integers(0, 2), st.booleans()),
        min_size=1,
        max_size=24,
    ),
    st.floats(0, 1),
)
def test_matches_the_reference_in_any_order(rows, weight):
    rewards, groups, human = (list(x) for x in zip(*rows, strict=True))
    found = group_advantages(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(groups),
        is_human=torch.tensor(human),
        human_weight=weight,
        num_groups=3,
    )
    expected = reference.group_advantages(rewards, groups, human, human_weight=weight)
    for i, advantage in enumerate(found.advantages.tolist()):
        if found.used[i] and not found.zero_spread[groups[i]]:
            assert advantage == pytest.approx(expected[i], rel=1e-5, abs=1e-5)
        else:
            assert advantage == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AdvantageSpec(scale="std"), "scale='std' is unknown"),
        (lambda: AdvantageSpec(min_scored=1), "must be 2 or more"),
        (lambda: AdvantageSpec(eps=-1.0), "eps=-1.0 must be 0 or more"),
        (lambda: group_advantages(torch.tensor([1, 2]), torch.zeros(2).long()), "must be .R,. fl"),
        (lambda: group_advantages(torch.ones(2), torch.zeros(3).long()), "one per reward"),
        (lambda: group_advantages(torch.ones(2), torch.zeros(2)), "must be integers"),
        (
            lambda: group_advantages(torch.ones(2), torch.zeros(2).long(), human_weight=NAN),
            "human_weight must be finite",
        ),
    ],
)
def test_bad_input_names_the_field(call, message):
    with pytest.raises(ValueError, match=message):
        call()
