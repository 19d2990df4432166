"""An asyncio loop in a thread of its own, for callers that are not asynchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for other threads until `stop`, which cancels what is left.

    The thread is a daemon, so an interpreter that is told to end never hangs on it.
    """

    def __init__(self, name: str) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._stopping = False

    def start(self) -> None:
        """Start the thread; returns when its loop runs.

        Raises:
            RuntimeError: no loop could be made, for want of file descriptors perhaps.
        """
        self._thread.start()
        self._ready.wait()
        if self._loop is None:
            raise RuntimeError(f"LoopThread: no event loop for {self._thread.name}; see the log")

    @property
    def running(self) -> bool:
        """Whether coroutines can be submitted."""
        return self._thread.is_alive() and not self._stopping

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop; only `call_soon_threadsafe` may be used from other threads."""
        if self._loop is None:
            raise RuntimeError("LoopThread: not started")
        return self._loop

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Schedule a coroutine from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for its result, from another thread."""
        future = self.submit(coroutine)
        try:
            return future.result()
        except BaseException:  # Ctrl-C in the waiting thread: the coroutine must not go on
            future.cancel()
            raise

    def stop(self, timeout_s: float = 10.0) -> None:
        """Cancel all tasks, close the loop and join the thread; may be called twice."""
        if self.running and self._end is not None:
            self._stopping = True
            self.loop.call_soon_threadsafe(self._end.set)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())  # cancels and awaits left-over tasks when _serve returns
        finally:
            self._ready.set()  # also when there is no loop: `start` must not wait for ever

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._ready.set()
        await self._end.wait()
