"""The curriculum by length: short first, all in the end, nothing forgotten, the same every time."""

from __future__ import annotations

from collections import Counter

import pytest

from polaris_fast.curriculum import CurriculumOrder

TARGETS = [1000 + 100 * ((7 * i) % 40) for i in range(40)]


def order(seed: int = 0, positions: int = 100) -> CurriculumOrder:
    return CurriculumOrder(TARGETS, seed, num_positions=positions, start_share=0.25)


def test_the_first_prompts_are_the_shortest_and_the_longest_come_last() -> None:
    drawn = [TARGETS[order()[n]] for n in range(100)]
    assert max(drawn[:4]) <= sorted(TARGETS)[10]
    assert max(drawn[:50]) <= sorted(TARGETS)[25]
    assert max(drawn) == max(TARGETS)


def test_the_pool_grows_steadily_to_all_records() -> None:
    sizes = [order().pool_size(n) for n in range(110)]
    assert sizes[0] == 10 and sizes[50] == 25 and sizes[100] == 40
    assert sizes == sorted(sizes)


def test_late_records_catch_up_and_then_all_come_equally_often() -> None:
    own = order()
    times = Counter(own[n] for n in range(400))
    assert set(times.values()) == {10}


def test_a_position_depends_on_seed_and_data_alone() -> None:
    forwards = [order()[n] for n in range(60)]
    jumped = order()
    assert jumped[59] == forwards[59]
    assert [jumped[n] for n in range(60)] == forwards
    assert [order(seed=1)[n] for n in range(60)] != forwards


def test_a_curriculum_of_no_length_is_shuffled_passes() -> None:
    own = order(positions=0)
    assert sorted(own[n] for n in range(40)) == list(range(40))


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_values_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="start_share"):
        CurriculumOrder(TARGETS, 0, num_positions=10, start_share=share)
