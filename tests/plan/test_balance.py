"""Ranks that wait for each other: the simulation by hand, and on the recipes' lengths."""

from __future__ import annotations

import pytest

from polaris_fast.config_file import load_config
from polaris_fast.packing import RowCost, plan_rounds, split_full_rounds
from polaris_fast.plan.balance import simulate
from polaris_fast.plan.lengths import draw_steps
from polaris_fast.plan.shapes import shape_of_run
from polaris_fast.plan.timing import row_cost


def test_idle_share_by_hand() -> None:
    # One round of slots {10} and {6}: the second rank waits 4 of 10.
    found = simulate([[[10], [6]]], 10, 2, RowCost(), policy="whole step")
    assert found.idle_share == pytest.approx(4 / 20)
    assert (found.slots_per_step, found.cost_per_step) == (2, 10)
    # A rank without rows waits all the time.
    assert simulate([[[10]]], 10, 2, RowCost()).idle_share == pytest.approx(1 / 2)


def test_rows_wait_until_they_fill_a_micro_batch_on_every_rank() -> None:
    groups = [[5], [4], [5], [5]]
    found = simulate([groups], 10, 2, RowCost())
    assert (found.slots_per_step, found.fill) == (2, pytest.approx(19 / 20))
    assert simulate([groups], 10, 2, RowCost(), policy="by group").slots_per_step == 4


def test_only_nearly_full_rounds_run_before_the_others() -> None:
    lengths = [9, 9, 9, 9, 3]
    rounds = plan_rounds(lengths, 10, num_ranks=2)
    full, left = split_full_rounds(rounds, lengths, 10, 2)
    run = sorted(i for slots in full for slot in slots for i in slot)
    assert sorted(run + left) == [0, 1, 2, 3, 4]
    assert all(sum(lengths[i] for slot in slots for i in slot) >= 17 for slots in full) and full
    assert split_full_rounds(plan_rounds([9, 9], 10, num_ranks=2), [9, 9], 10, 2) == ([], [0, 1])


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
@pytest.mark.parametrize("name", ["polaris_9b", "polaris_9b_12k"])
def test_ranks_wait_at_most_five_percent_on_the_recipe_s_lengths(name: str, num_ranks: int) -> None:
    config = load_config(name, {})
    steps = draw_steps(config, 40, seed=1)
    rows = [[[config.max_prompt_length + n for n in group] for group in step] for step in steps]
    cost = row_cost(shape_of_run(config))
    found = simulate(rows, config.packing.max_tokens_per_microbatch, num_ranks, cost)
    assert found.idle_share <= 0.05
