"""Rank 0's hold on the others: starts them, hands out shared rollouts and slots, lets them go."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import Self

from ..rollout import RolloutEngine
from ..slots import Slots
from ..types import UserError
from .channel import Channel, RankLost
from .parts import Orders, Parts
from .rollouts import SharedRollouts
from .slots import SharedSlots
from .streams import Inbox
from .world import World


class Conductor:
    """A context manager around the whole run; with one rank it does nothing."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._channel = Channel(world) if world.size > 1 else None
        self._inbox: Inbox | None = None
        self._awaits_followers = False  # they answer once when they are built

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._channel is not None:
            with suppress(RankLost):  # who is gone needs no word
                if self._awaits_followers:
                    self._channel.gather(None)
                self._channel.send("end")
        if self._inbox is not None:
            self._inbox.close()

    def send_orders(self, orders: Orders) -> None:
        """Let the followers build their parts; returns at once, `share` waits for them."""
        if self._channel is not None:
            self._inbox = Inbox(self.world.size - 1)
            self._channel.send("build", orders, self._inbox.address)
            self._awaits_followers = True

    def share(self, parts: Parts) -> tuple[Slots, RolloutEngine]:
        """The run's slots and rollouts: over all ranks, or this rank's own when it is alone.

        Raises:
            UserError: a follower could not build its parts, in its words.
            RankLost: a follower is gone.
        """
        assert parts.rollouts is not None
        if self._channel is None:
            return parts.slots, parts.rollouts
        assert self._inbox is not None
        answers = self._channel.gather(None)
        self._awaits_followers = False
        for rank, fault in enumerate(answers):
            if fault is not None:
                raise UserError(f"rank {rank}: {fault}")
        self._inbox.accept()
        rollouts = parts.rollouts
        if not rollouts.serves_all_ranks:
            rollouts = SharedRollouts(rollouts, self._channel, self._inbox)
        return SharedSlots(parts.slots, self._channel), rollouts
