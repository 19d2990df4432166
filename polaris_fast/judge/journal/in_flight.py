"""The same question asked twice at the same moment is one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class InFlight(Generic[T]):
    """Work under way by key; used on one asyncio loop.

    answer = await in_flight.share(key, lambda: self._judge(key, job))
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[T]] = {}
        self._waiting: dict[str, int] = {}

    def __len__(self) -> int:
        """Pieces of work under way."""
        return len(self._tasks)

    def __contains__(self, key: str) -> bool:
        return key in self._tasks

    async def share(self, key: str, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the work under way for `key`, or of `start()` when there is none.

        All who wait get the same result or the same exception. One that is cancelled leaves the
        others their work; with the last of them the work is cancelled, and awaited.
        """
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(start())
            self._tasks[key] = task
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            return await asyncio.shield(task)
        finally:
            await self._leave(key, task)

    async def _leave(self, key: str, task: asyncio.Task[T]) -> None:
        self._waiting[key] -= 1
        if self._waiting[key]:
            return
        # Nobody waits any more: a later question of this key starts anew.
        del self._waiting[key], self._tasks[key]
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
