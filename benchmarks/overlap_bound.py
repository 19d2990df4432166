"""What the trace of a step allows: the bound, and the time without overlap.

Both replay the step's own trace: rows were sent when they were sent, each is scored after its
scripted latency, writing ended when it ended, groups train for as long as they trained. The bound
trains each group once it is ready and the one before is done, in the best order that the order
rule permits; sequential holds training until the last score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from polaris_fast.step import StepResult


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one step."""

    overlapped: float  # as it ran
    bound: float
    sequential: float
    judge: float  # from the first row sent to the last score, by the script
    hidden: float  # part of `judge` during which something else was done
    bound_hidden: float

    @property
    def hidden_share(self) -> float:
        return self.hidden / self.judge

    @property
    def bound_hidden_share(self) -> float:
        return self.bound_hidden / self.judge


def times_of(
    result: StepResult, latency_s: Callable[[str], float], *, fixed_order: bool
) -> StepTimes:
    """The step's own time, and what its trace allows.

    Args:
        result: a step each of whose rows went to the judge once.
        latency_s: the script's latency of a story.
        fixed_order: groups must train in index order.
    """
    when = {(kind, what): t for t, kind, what in result.trace}
    start, end = when["step", "start"], when["step", "end"]
    wrote = when["rollout", "end"]
    sent = {row.row_id: when["row", f"sent {row.row_id}"] for row in result.rows}
    ready = {
        group.index: max(sent[row.row_id] + latency_s(row.story) for row in group.rows)
        for group in result.groups
    }
    train = {
        group.index: when["train", f"end {group.index}"] - when["train", f"start {group.index}"]
        for group in result.groups
    }
    after = end - max(when["train", f"end {index}"] for index in train)  # the optimizer
    order = sorted(ready) if fixed_order else sorted(ready, key=lambda g: ready[g])
    last, work = max(ready.values()), wrote - start + sum(train.values()) + after
    bound = play(((ready[g], train[g]) for g in order), wrote) + after - start
    sequential = play(((last, train[g]) for g in order), wrote) + after - start
    judge = last - min(sent.values())
    return StepTimes(
        overlapped=end - start,
        bound=bound,
        sequential=sequential,
        judge=judge,
        hidden=judge - (end - start - work),
        bound_hidden=judge - (bound - work),
    )


def play(groups: Iterable[tuple[float, float]], now: float) -> float:
    """When the last group is done, each starting once it is ready and the one before is done.

    Args:
        groups: (ready at, seconds of training), in order.
        now: when the first could start.
    """
    for ready, seconds in groups:
        now = max(now, ready) + seconds
    return now
