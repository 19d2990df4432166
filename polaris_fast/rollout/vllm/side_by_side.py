"""Calls that wait for another process, in threads that can be left behind when it is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TypeVar

from ...types import UserError
from .errors import ServerError
from .fleet import GRACE_S, Fleet

T = TypeVar("T")


def within(timeout_s: float, action: Callable[[], T], fleet: Fleet) -> T:
    """The result of `action`, run in a thread of its own that is left behind when it hangs.

    Raises:
        ServerError: it took longer than `timeout_s`, a collective failed, or vLLM refused.
    """
    return _settle([_in_thread(action)], timeout_s, fleet)[0]


def both(first: Callable[[], None], second: Callable[[], None], fleet: Fleet) -> None:
    """Run two calls side by side, each of which waits for the other; the first error is raised."""
    _settle([_in_thread(first), _in_thread(second)], None, fleet)


def _in_thread(action: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    # A daemon: a collective whose other side is gone must not keep the interpreter from ending.
    threading.Thread(target=run, name="weight-sync", daemon=True).start()
    return future


def _settle(futures: list[Future[T]], timeout_s: float | None, fleet: Fleet) -> list[T]:
    done, _ = wait(futures, timeout_s, return_when=FIRST_EXCEPTION)
    try:
        for future in done:
            future.result()
    except UserError:  # one of our own, which says what is wrong
        raise
    # torch.distributed has no word on who is gone; vLLM's engines refuse by ValueError.
    except (RuntimeError, OSError, ValueError) as error:
        fleet.check_alive(GRACE_S)
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ServerError(
            f"rollout.vllm: the weights could not be sent ({text}); {fleet.where_to_look()}"
        ) from error
    if len(done) < len(futures):
        raise ServerError(
            f"rollout.vllm: the weights were not sent within {timeout_s:g} s; "
            f"{fleet.where_to_look()}, or raise rollout.vllm.sync_timeout_s"
        )
    return [future.result() for future in futures]
