"""`Slots` over all ranks: each round of micro-batches is one command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..engine import UpdateResult
from ..slots import PassSums, SlotTrainer
from ..types import Row
from .channel import Channel


class SharedSlots:
    """The conductor's `Slots`: its own rank trains the first slot of each round."""

    def __init__(self, local: SlotTrainer, channel: Channel) -> None:
        self.local, self.channel = local, channel
        self.num_ranks = channel.world.size
        self.row_cost = local.row_cost

    def first_pass(self, slots: Sequence[Sequence[Row]], denominator: float) -> None:
        """Ranks without a slot run the round's shortest row at weight 0.

        Raises:
            UserError: rows that cannot be trained, before any rank has begun with the others.
        """
        for rows in slots:
            self.local.check(rows)
        shortest = min((row for rows in slots for row in rows), key=lambda row: row.num_tokens)
        idle = [None] * (self.num_ranks - len(slots))
        parts = [(rows, shortest, denominator) for rows in (*slots, *idle)]
        self.channel.send_each("first_pass", parts)
        first_pass(self.local, *parts[0])

    def again(self, denominator: float) -> None:
        self.channel.send("again", denominator)
        self.local.again(denominator)

    def take_sums(self) -> PassSums:
        self.channel.send("take_sums")
        return _added(self.channel.gather(on_cpu(self.local.take_sums())))

    def update(self, grad_scale: float) -> UpdateResult:
        self.channel.send("update", grad_scale)
        return self.local.update(grad_scale)

    def skip_updates(self, count: int) -> None:
        self.channel.send("skip_updates", count)
        self.local.skip_updates(count)

    def end_step(self) -> None:
        self.channel.send("end_step")
        self.local.end_step()

    def save(self, folder: Path) -> None:
        self.channel.send("save", folder)
        self.local.save(folder)
        self.channel.gather(None)  # shards of all ranks are written


def first_pass(
    local: SlotTrainer, rows: Sequence[Row] | None, stand_in: Row, denominator: float
) -> None:
    """One rank's part of a round."""
    if rows is None:
        local.idle_pass(stand_in)
    else:
        local.first_pass([rows], denominator)


def on_cpu(sums: PassSums) -> PassSums:
    """The same sums, ready to travel: one wait for the device."""
    return PassSums(
        {name: value.detach().cpu() for name, value in sums.loss.items()},
        {name: value.detach().cpu() for name, value in sums.sampling.items()},
        sums.train_tokens,
    )


def _added(parts: Sequence[PassSums]) -> PassSums:
    total = PassSums({}, {}, 0)
    for part in parts:
        total.add(part)
    return total
