"""The endpoint itself, an aiohttp application; `ScriptedServer` runs it in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from polaris_fast.judge.local_server import find_material
from polaris_fast.judge.request import read_material
from polaris_fast.loop_thread import LoopThread

from .behaviours import Behaviour, body, ok
from .ledger import Ledger
from .limits import Gate, Limits
from .script import PAID_FAULTS, Script, story_hash
from .wire import status

KEY_VARIABLE = "POLARIS_TEST_JUDGE_KEY"  # no one's real key
MAX_BODY_BYTES = 16 * 2**20

ByHand = Iterable[Behaviour] | Callable[[str], Iterable[Behaviour]]


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, str]]:
        return self.body["messages"]

    @property
    def story(self) -> str:
        return find_material(self.messages).story


class HandScript:
    """Behaviours in order, or for each story in order; `default` when they are used up."""

    def __init__(self, script: ByHand, default: Behaviour) -> None:
        self._by_story = script if callable(script) else None
        self._queue: deque[Behaviour] = deque([] if callable(script) else script)
        self._story_queues: dict[str, deque[Behaviour]] = {}
        self._default = default

    def next(self, story: str) -> Behaviour:
        queue = self._queue
        if self._by_story is not None:
            if story not in self._story_queues:
                self._story_queues[story] = deque(self._by_story(story))
            queue = self._story_queues[story]
        return queue.popleft() if queue else self._default


class Endpoint:
    """Plays a script and keeps the ledger; without a thread or a socket of its own.

    POST /v1/chat/completions    the script
    GET  /v1/models              `models`
    GET  /ledger                 the ledger's summary; with ?stories=1 each story's account
    """

    def __init__(
        self,
        script: Script | ByHand = (),
        *,
        limits: Limits | None = None,
        default: Behaviour | None = None,
        models: Behaviour | None = None,
        keep_requests: bool = True,
    ) -> None:
        """
        Args:
            script: a seeded script, or behaviours by hand (a list, or a function from the story).
            limits: requests over them are throttled and use up no attempt of the script.
            default: what answers when a script by hand is used up; None: `ok()`.
            models: behaviour of GET /v1/models; None: an empty list.
            keep_requests: remember every request; off where there are very many.
        """
        self.ledger = Ledger()
        self.requests: list[Seen] = []  # chat completions only
        self._script = script if isinstance(script, Script) else HandScript(script, default or ok())
        self._models = models or body({"object": "list", "data": []})
        self._gate = Gate(limits or Limits())
        self._keep = keep_requests

    def build_app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/ledger", self._show_ledger)
        return app

    async def _show_ledger(self, request: web.Request) -> web.Response:
        if request.query.get("stories"):
            return web.json_response(self.ledger.by_story())
        return web.json_response(asdict(self.ledger.summary()))

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        tree = await request.json()
        if self._keep:
            self.requests.append(Seen(request.path, dict(request.headers), tree))
        story = _story(tree)
        if isinstance(self._script, Script) and story is None:  # a client's check, no story
            return await (ok() if tree.get("messages") else status(400))(request)
        refused = self._gate.turned_away(self.ledger.in_flight)
        story = story or ""
        self.ledger.arrived(story_hash(story))
        try:
            if refused is not None:
                self.ledger.turned_away(refused[0])
                wait = {"Retry-After": f"{refused[1]:.3f}"} if refused[1] else None
                return await status(429, headers=wait)(request)
            return await self._play(request, story)
        finally:
            self.ledger.left()

    async def _play(self, request: web.Request, story: str) -> web.StreamResponse:
        key = story_hash(story)
        number = self.ledger.next_attempt(key)
        if isinstance(self._script, Script):
            attempt = self._script.attempt(story, number)
            fault, variant = attempt.fault, attempt.variant
            behave = self._script.behaviour(story, attempt)
        else:
            fault, variant, behave = "", "by hand", self._script.next(story)
        response: web.StreamResponse | None = None
        try:
            response = await behave(request)
            return response
        finally:  # a client that hangs up cancels this handler
            transport = request.transport
            closed = response is None or transport is None or transport.is_closing()
            gone = closed and fault != "transient"  # a reset is the endpoint's own doing
            billed = not closed and response is not None and response.status == 200
            paid = billed and (not fault or fault in PAID_FAULTS)
            self.ledger.ended(key, fault=fault, variant=variant, paid=paid, gone=gone)


class ScriptedServer:
    """An `Endpoint` on a free loopback port, in a thread, until closed."""

    def __init__(
        self, script: Script | ByHand = (), *, limits: Limits | None = None, **options: Any
    ) -> None:
        """Serves at once; arguments as of `Endpoint`."""
        self._endpoint = Endpoint(script, limits=limits, **options)
        self.ledger = self._endpoint.ledger
        self.requests = self._endpoint.requests
        self._thread = LoopThread("scripted-server")
        self._thread.start()
        self._runner, self.base_url = self._thread.call(serve(self._endpoint, "127.0.0.1", 0))

    @property
    def stories(self) -> list[str]:
        """The stories of all requests, in order of arrival."""
        return [seen.story for seen in self.requests]

    @property
    def in_flight(self) -> int:
        return self.ledger.in_flight

    @property
    def most_in_flight(self) -> int:
        return self.ledger.most_in_flight

    def close(self) -> None:
        """Stop serving."""
        self._thread.call(self._runner.cleanup())
        self._thread.stop()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _story(tree: dict[str, Any]) -> str | None:
    """The story of a request, or None where it holds none."""
    texts = [m.get("content") for m in tree.get("messages", ()) if m.get("role") == "user"]
    found = (read_material(text) for text in texts if isinstance(text, str))
    return next((material.story for material in found if material is not None), None)


async def serve(endpoint: Endpoint, host: str, port: int) -> tuple[web.AppRunner, str]:
    """Start serving on the running loop: the runner, to clean up, and the base URL."""
    runner = web.AppRunner(
        endpoint.build_app(), access_log=None, shutdown_timeout=0.01, handler_cancellation=True
    )
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=1024).start()
    return runner, f"http://{host}:{runner.addresses[0][1]}/v1"
