"""How long ranks wait for each other: `packing.plan_rounds` over simulated steps.

In a round every rank runs one micro-batch; the round lasts as long as its costliest. A rank's idle
share is what it waits of that, rounds in which it has no rows included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..packing import RowCost, plan_rounds, split_full_rounds

Groups = Sequence[Sequence[int]]  # tokens of each row, prompt included, of each group of a step
Round = list[list[int]]  # tokens of each row of each rank's micro-batch

# When rows train: as in a run (one rank: each group when it is ready; several: nearly full rounds,
# and the other rows wait for further groups), each group at once, or a step's rows together.
Policy = Literal["as run", "by group", "whole step"]


@dataclass(frozen=True)
class Balance:
    """Over all simulated steps."""

    num_ranks: int
    idle_share: float  # of all ranks' time in forward and backward
    worst_step: float  # the same of the worst step
    slots_per_step: float  # micro-batches of all ranks
    fill: float  # tokens in a micro-batch over its budget
    cost_per_step: float  # of the costliest rank, in the unit of `RowCost`


def simulate(
    steps: Sequence[Groups],
    token_budget: int,
    num_ranks: int,
    cost: RowCost,
    *,
    policy: Policy = "as run",
) -> Balance:
    """Plan every step and add up who waits.

    Args:
        steps: rows of each step, groups in the order they become ready.
        token_budget: `packing.max_tokens_per_microbatch`.
    """
    busy = span = worst = 0.0
    num_slots = tokens = 0
    for groups in steps:
        own_busy = own_span = 0.0
        for slots in rounds_of_step(groups, token_budget, num_ranks, cost, policy):
            costs = [sum(map(cost, slot)) for slot in slots]
            own_busy += sum(costs)
            own_span += max(costs)
            num_slots += len(slots)
            tokens += sum(map(sum, slots))
        worst = max(worst, 1 - own_busy / (num_ranks * own_span))
        busy, span = busy + own_busy, span + own_span
    return Balance(
        num_ranks=num_ranks,
        idle_share=1 - busy / (num_ranks * span),
        worst_step=worst,
        slots_per_step=num_slots / len(steps),
        fill=tokens / (num_slots * token_budget),
        cost_per_step=span / len(steps),
    )


def rounds_of_step(
    groups: Groups, budget: int, num_ranks: int, cost: RowCost, policy: Policy = "as run"
) -> Iterator[Round]:
    """The rounds of a step in the order they run.

    Args:
        groups: tokens of each row of each group, groups in the order they become ready.
        budget: tokens of a micro-batch.
    """
    waiting: list[int] = []
    for group in groups:
        waiting += group
        if policy == "by group" or (policy == "as run" and num_ranks == 1):
            yield from _planned(waiting, budget, num_ranks, cost)
            waiting = []
        elif policy == "as run":
            plan = plan_rounds(waiting, budget, cost=cost, num_ranks=num_ranks)
            full, left = split_full_rounds(plan, waiting, budget, num_ranks)
            yield from ([[waiting[i] for i in slot] for slot in slots] for slots in full)
            waiting = [waiting[i] for i in left]
    if waiting:
        yield from _planned(waiting, budget, num_ranks, cost)


def _planned(lengths: Sequence[int], budget: int, num_ranks: int, cost: RowCost) -> list[Round]:
    planned = plan_rounds(lengths, budget, cost=cost, num_ranks=num_ranks)
    return [[[lengths[row] for row in slot] for slot in slots] for slots in planned]
