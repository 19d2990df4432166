"""Wakes everybody who waits for a change; what has changed they see for themselves."""

from __future__ import annotations

import asyncio


class Bell:
    """For one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Return at the next `ring`."""
        await self._event.wait()

    def ring(self) -> None:
        """Wake all who wait now."""
        self._event.set()
        self._event = asyncio.Event()
