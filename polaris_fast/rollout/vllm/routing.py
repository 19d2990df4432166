"""Which server writes which rows.

Rows of one prompt go to one server, whose prefix cache then holds the prompt once; among servers
with room the one with the fewest rows in flight is taken. A server that is lost gets no more until
it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from ..base import RolloutRequest

Server = TypeVar("Server", bound=Hashable)


class Router(Generic[Server]):
    """Places rows on servers; used on one event loop."""

    def __init__(self, servers: Iterable[Server], capacity: int) -> None:
        """
        Args:
            capacity: rows that a server writes at once; beyond it no new prompt is placed there.
        """
        self.in_flight = {server: 0 for server in servers}
        self.capacity = capacity
        self._changed = asyncio.Condition()

    async def place(self, num_rows: int) -> Server:
        """A server for `num_rows` rows, now counted as in flight; waits until one has room."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._free() is not None)
            server = self._free()
            assert server is not None
            self.in_flight[server] += num_rows
            return server

    async def release(self, server: Server) -> None:
        """One row of the server has ended."""
        async with self._changed:
            if self.in_flight.get(server):  # a server that is back counts from 0
                self.in_flight[server] -= 1
            self._changed.notify_all()

    async def lose(self, server: Server) -> None:
        """Place nothing more on this server."""
        async with self._changed:
            self.in_flight.pop(server, None)
            self._changed.notify_all()

    async def restore(self, servers: Iterable[Server]) -> None:
        """These are back; those that were not lost here keep their rows."""
        async with self._changed:
            self.in_flight = {server: 0 for server in servers} | self.in_flight
            self._changed.notify_all()

    def _free(self) -> Server | None:
        least = min(self.in_flight, key=self.in_flight.__getitem__, default=None)
        return least if least is not None and self.in_flight[least] < self.capacity else None


def by_prompt(requests: Sequence[RolloutRequest], capacity: int) -> list[list[int]]:
    """Indices of the requests of each prompt, in pieces of at most `capacity`."""
    prompts: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        prompts.setdefault(request.prompt_ids, []).append(index)
    return [
        rows[start : start + capacity]
        for rows in prompts.values()
        for start in range(0, len(rows), capacity)
    ]
