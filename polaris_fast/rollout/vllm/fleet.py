"""The servers of a run, launched or given, and the event loop that speaks with them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import aiohttp

from ...config import Config
from ...loop_thread import LoopThread
from .client import VLLMClient, first_error
from .errors import ServerError, Unreachable
from .launcher import LaunchedServer, visible_gpu

log = logging.getLogger(__name__)

# Weights and cache are given up; nothing is kept on the host: the next update brings the weights.
_SLEEP_LEVEL = 2
_POLL_S = 0.2  # between looks at a server that starts
GRACE_S = 2.0  # from a broken connection to the end of its process


class Fleet:
    """Servers and their clients. Launched servers start at once; `wait_ready` awaits them."""

    def __init__(
        self,
        config: Config,
        model_path: str,
        *,
        log_dir: Path,
        backend: str,
        text_only: bool = False,
        own: tuple[int, int] | None = None,
    ) -> None:
        """
        Args:
            model_path: what launched servers load first.
            log_dir: where `vllm-N.log` of launched servers go.
            backend: weight transfer of launched servers.
            text_only: they serve the text model of a model with vision.
            own: rank and device of the trainer whose GPU a single server shares (`colocated`).

        Raises:
            ServerError: vLLM is not installed.
        """
        self.settings = config.rollout.vllm
        self.launched: list[LaunchedServer] = []
        self.clients: list[VLLMClient] = []
        self.is_ready = False  # after `wait_ready`
        self.processed_logprobs = False  # known after `wait_ready`
        self.asleep = False  # the servers have no weights until the next update wakes them
        with ExitStack() as undo:
            for number, gpus in self._to_launch(own):
                server = LaunchedServer(
                    config,
                    model_path,
                    text_only=text_only,
                    log_path=log_dir / f"vllm-{number}.log",
                    backend=backend,
                    gpus=gpus,
                )
                undo.callback(server.stop)
                self.launched.append(server)
            self._loop = LoopThread("vllm")
            self._loop.start()
            undo.callback(self._loop.stop)
            self._session = self._loop.call(_open_session())
            self._stack = undo.pop_all()
        urls = [s.base_url for s in self.launched] or self.settings.base_urls
        self.clients = [VLLMClient(url.rstrip("/"), self._session) for url in urls]

    def _to_launch(self, own: tuple[int, int] | None) -> list[tuple[int, list[str]]]:
        """Number and GPUs of each server."""
        if own is not None:
            rank, device = own
            return [(rank, [visible_gpu(device)])]
        numbers = range(self.settings.num_servers if self.settings.launch else 0)
        return [(number, [str(gpu) for gpu in self.settings.gpus_of(number)]) for number in numbers]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections and the launched servers; servers that were given run on."""
        if self._loop.running:
            self._loop.call(self._session.close())
        for server in self.launched:
            server.ask_to_end()  # all at once; the stack waits for each
        self._stack.close()

    def wait_ready(self, check_stop: Callable[[], None]) -> None:
        """Return when every server answers; `check_stop` is called meanwhile and may raise.

        Raises:
            ServerError: a launched server ended, one did not answer in `start_timeout_s`, a given
                one is paused, or the servers report different kinds of log-probs.
        """
        self._await_health(self.clients, check_stop)
        if not self.launched:
            self._refuse_paused()
        modes = self.on_all(
            [c.processes_logprobs(self.settings.sync_timeout_s) for c in self.clients]
        )
        if len(set(modes)) > 1:
            raise ServerError(
                "rollout.vllm.base_urls: the servers differ in --logprobs-mode; start all with one"
            )
        self.processed_logprobs = modes[0]
        self.is_ready = True

    def _refuse_paused(self) -> None:
        """A paused server would answer no row, and the weights it has may be half another run's."""
        limit = self.settings.sync_timeout_s
        paused = self.on_all([client.is_paused(limit) for client in self.clients])
        names = [c.base_url for c, is_so in zip(self.clients, paused, strict=True) if is_so]
        if names:
            raise ServerError(
                f"rollout.vllm.base_urls: {', '.join(names)} is paused: another run left it in the "
                "middle of an update, or updates it now; restart it, or give this run servers of "
                "its own"
            )

    def sleep(self) -> None:
        """The servers give their memory back until the next update."""
        self.repeat(f"/sleep?level={_SLEEP_LEVEL}", self.settings.sync_timeout_s)
        self.asleep = True

    def stop_launched(self) -> None:
        """End the launched servers, which give their memory back; `revive` starts them again."""
        for server in self.launched:
            server.stop()

    def revive(self, lost: Sequence[VLLMClient], check_stop: Callable[[], None]) -> None:
        """Start launched servers again and wait for them, as for given ones that went away.

        They hold the weights they started with. Called on the thread that launched them: servers
        end with it.

        Raises:
            ServerError: one did not start, or did not answer in `start_timeout_s`.
        """
        for client in lost:
            server = self._launched_by(client)
            if server is not None:
                log.warning(
                    "%s is lost; it is started again, see %s", client.base_url, server.log_path
                )
                server.restart()
            else:
                log.warning("%s is lost; waiting for it", client.base_url)
        self._await_health(lost, check_stop)

    def ended(self) -> list[VLLMClient]:
        """Servers whose process has ended; of given ones nobody knows."""
        return [c for c in self.clients if (s := self._launched_by(c)) is not None and s.has_ended]

    def silent(self) -> list[VLLMClient]:
        """Servers that do not answer now."""
        healthy = self.call(_all_healthy(self.clients))
        return [c for c, answers in zip(self.clients, healthy, strict=True) if not answers]

    def _launched_by(self, client: VLLMClient) -> LaunchedServer | None:
        return self.launched[self.clients.index(client)] if self.launched else None

    def _await_health(self, clients: Sequence[VLLMClient], check_stop: Callable[[], None]) -> None:
        deadline = time.monotonic() + self.settings.start_timeout_s
        waiting = list(clients)
        while waiting:
            check_stop()
            for client in waiting:
                if (server := self._launched_by(client)) is not None:
                    server.check_alive()
            waiting = [c for c in waiting if not self.call(c.is_healthy())]
            if waiting and time.monotonic() > deadline:
                raise ServerError(
                    f"rollout.vllm: {waiting[0].base_url} did not answer within "
                    f"{self.settings.start_timeout_s:g} s; {self.where_to_look()}, or raise "
                    "rollout.vllm.start_timeout_s"
                )
            time.sleep(_POLL_S if waiting else 0)

    def check_alive(self, grace_s: float = 0.0) -> None:
        """Raises ServerError when a launched server has ended, or does so within `grace_s`."""
        for server in self.launched:
            server.check_alive(grace_s)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the servers' loop and wait for it."""
        return self._loop.call(coroutine)

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Start a coroutine on the servers' loop; its `concurrent.futures.Future`."""
        return self._loop.submit(coroutine)

    def on_all(self, coroutines: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Run coroutines side by side; what is unreachable becomes a ServerError."""
        try:
            results: list[Any] = self.call(first_error(*coroutines))
        except Unreachable as error:
            self.check_alive(GRACE_S)  # says more
            raise ServerError(f"rollout.vllm: {error}; {self.where_to_look()}") from error
        return results

    def post(
        self, path: str, timeout_s: float, bodies: Sequence[dict[str, Any] | None] | None = None
    ) -> list[Any]:
        """The same request to every server at once, with a body each."""
        each = bodies if bodies is not None else [None] * len(self.clients)
        return self.on_all(
            [
                client.request("POST", path, timeout_s, body)
                for client, body in zip(self.clients, each, strict=True)
            ]
        )

    def repeat(self, path: str, timeout_s: float) -> None:
        """`post`, made again where a connection breaks: for what may be done twice."""
        self.on_all([client.repeat("POST", path, timeout_s) for client in self.clients])

    def where_to_look(self) -> str:
        """Where a person finds out more about a server that fails."""
        if self.launched:
            return f"see {', '.join(str(s.log_path) for s in self.launched)}"
        return f"see the logs of {', '.join(c.base_url for c in self.clients)}"


async def _all_healthy(clients: Sequence[VLLMClient]) -> list[bool]:
    return await asyncio.gather(*(client.is_healthy() for client in clients))


async def _open_session() -> aiohttp.ClientSession:
    # Every row is a request of its own, open until its last token: no limit on connections. Each is
    # new: a server closes an idle one (vLLM after 5 s) just when the next request may take it.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
