"""Commands from the conductor to every rank, and what the ranks answer.

Objects are pickled and travel over gloo, in one order for all ranks. Only processes of this run are
in the process group, so what is unpickled is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from .world import World

# Followers wait for their next command as long as a judge may pause; a rank that dies closes its
# connections, which ends the wait at once.
_PATIENCE = timedelta(days=7)


class RankLost(RuntimeError):
    """A rank has ended or cannot be reached; the run cannot go on without it."""


class Channel:
    """One per rank, made by all ranks together, as every call is; the conductor's speaks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def send(self, name: str, *arguments: Any) -> None:
        """Conductor: give every follower the same command."""
        self.send_each(name, [arguments] * self.world.size)

    def send_each(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        """Conductor: give follower r the command with `arguments[r]`; those of rank 0 are its own.

        Raises:
            RankLost: a rank is gone.
        """
        self._scatter([(name, given) for given in arguments])

    def receive(self) -> tuple[str, tuple[Any, ...]]:
        """Follower: wait for the next command: its name and arguments."""
        name, arguments = self._scatter(None)
        return name, arguments

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks by rank, on the conductor; an empty list elsewhere."""
        into: list[Any] | None = [None] * self.world.size if self.world.is_conductor else None
        try:
            dist.gather_object(value, into, dst=0, group=self._group)
        except RuntimeError as error:
            raise _lost(error) from error
        return into or []

    def _scatter(self, values: list[Any] | None) -> Any:
        mine: list[Any] = [None]
        try:
            dist.scatter_object_list(mine, values, src=0, group=self._group)
        except RuntimeError as error:
            raise _lost(error) from error
        return mine[0]


def _lost(error: RuntimeError) -> RankLost:
    first = (str(error).strip().splitlines() or [""])[0]
    return RankLost(
        f"another rank of this run has ended ({first}); its own output says why. Mend that, then "
        "go on with resume_from_checkpoint"
    )
