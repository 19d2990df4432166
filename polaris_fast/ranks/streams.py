"""Finished rows on their way to the conductor while a generation runs, and its word to stop.

One socket per follower, beside the process group: a row must not wait for the other ranks. Rows and
stop requests carry the number of their generation, so one that comes late is told from the next.
"""

from __future__ import annotations

import os
import queue
import secrets
import socket
import threading
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from ..rollout import Completion
from ..types import UserError
from .channel import RankLost


@dataclass(frozen=True)
class Fault:
    """What a follower cannot do any more, in words for a person."""

    words: str


@dataclass(frozen=True)
class Address:
    """Where the conductor listens, and the secret that opens the door."""

    host: str
    port: int
    secret: bytes


class Abandoned(Exception):
    """The conductor wants no more of this generation."""


class Inbox:
    """The conductor's side."""

    def __init__(self, num_followers: int) -> None:
        """Listens at once; `accept` waits for the followers."""
        secret = secrets.token_bytes(32)
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        local = host in ("localhost", "127.0.0.1", socket.gethostname())
        bind = "127.0.0.1" if local and _one_machine() else ""
        self._listener = Listener((bind, 0), authkey=secret, backlog=max(num_followers, 1))
        port = self._listener.address[1]
        assert isinstance(port, int)
        self.address = Address(bind or host, port, secret)
        self._followers: list[Connection[Any, Any]] = []
        self.num_followers = num_followers
        self._generation = 0
        # (generation, index of the request, completion), or None for a follower that is gone
        self._arrived: queue.SimpleQueue[tuple[int, int, Completion] | Fault | None] = (
            queue.SimpleQueue()
        )

    def accept(self) -> None:
        """Wait for all followers, and read what they send from then on."""
        for _ in range(self.num_followers):
            connection = self._listener.accept()
            self._followers.append(connection)
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def begin(self) -> int:
        """Number of the generation that starts now."""
        self._generation += 1
        return self._generation

    def take(self, timeout_s: float | None = None) -> tuple[int, Completion] | None:
        """The next finished row as (index of its request, completion); None after `timeout_s`.

        Raises:
            RankLost: a follower is gone. UserError: one cannot write, in its words.
        """
        while True:
            try:
                arrived = self._arrived.get(block=timeout_s is not None, timeout=timeout_s)
            except queue.Empty:
                return None
            if arrived is None:
                raise RankLost(
                    "a rank ended while it was writing stories; its own output says why. Mend "
                    "that, then go on with resume_from_checkpoint"
                )
            if isinstance(arrived, Fault):
                raise UserError(arrived.words)
            generation, index, completion = arrived
            if generation == self._generation:
                return index, completion

    def stop_generation(self) -> None:
        """Tell all followers to abandon what they write."""
        for connection in self._followers:
            connection.send(self._generation)

    def close(self) -> None:
        self._listener.close()
        for connection in self._followers:
            connection.close()

    def _read(self, connection: Connection[Any, Any]) -> None:
        try:
            while True:
                self._arrived.put(connection.recv())
        except (EOFError, OSError):
            self._arrived.put(None)


class Outbox:
    """A follower's side."""

    def __init__(self, address: Address) -> None:
        self._connection = Client((address.host, address.port), authkey=address.secret)

    def put(self, generation: int, index: int, completion: Completion) -> None:
        """Send a finished row."""
        self._connection.send((generation, index, completion))

    def report(self, words: str) -> None:
        """Say that this rank cannot write; the conductor ends the run."""
        self._connection.send(Fault(words))

    def check(self, generation: int) -> None:
        """Raise Abandoned when the conductor wants no more of this generation."""
        while self._connection.poll():
            if self._connection.recv() == generation:
                raise Abandoned

    def close(self) -> None:
        self._connection.close()


def _one_machine() -> bool:
    return os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
