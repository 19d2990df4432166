"""Rows that a fleet's event loop finishes, handed over in the thread that asked for them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from queue import Empty, SimpleQueue
from typing import Any

from ..base import Completion
from .fleet import Fleet

_POLL_S = 0.1  # how often the caller may look for a stop while no row ends

Finished = SimpleQueue[tuple[int, Completion] | None]


def deliver(
    fleet: Fleet,
    write: Callable[[Finished], Coroutine[Any, Any, None]],
    num_rows: int,
    on_finish: Callable[[int, Completion], None],
    look: Callable[[int], None],
) -> None:
    """Run `write` on the fleet's loop to its end, with its faults raised here.

    Args:
        write: puts (index, completion) of each row into the queue it is given.
        look: called between rows and every tenth of a second, with how many are missing; what it
            raises ends the writing.
    """
    finished: Finished = SimpleQueue()
    future = fleet.submit(write(finished))
    future.add_done_callback(lambda _: finished.put(None))
    missing = num_rows
    try:
        while True:
            try:
                arrived = finished.get(timeout=_POLL_S)
            except Empty:
                pass
            else:
                if arrived is None:
                    break
                missing -= 1
                on_finish(*arrived)
            look(missing)
    except BaseException:
        future.cancel()  # closes the connections, and the servers drop the rows
        raise
    future.result()
