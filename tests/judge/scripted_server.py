"""An OpenAI-compatible endpoint on loopback that plays a script: one behaviour a request.

    with ScriptedServer([ok(50), status(429, headers={"Retry-After": "0"}), ok(50)]) as server:
        server.base_url, server.requests

When the script is used up, the default behaviour (`ok(40)`) answers. Behaviours are coroutine
functions of the request; the ones below produce every failure that judge clients meet. A script
can also be a function from the story to a list of behaviours: each story then has its own.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from polaris_fast.judge import rubric
from polaris_fast.judge.local_server import find_material
from polaris_fast.judge.loop_thread import LoopThread

KEY_VARIABLE = "POLARIS_TEST_JUDGE_KEY"  # no one's real key

Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]
StoryScript = Callable[[str], Iterable[Behaviour]]


def answer_tree(quality_points: float = 40.0) -> dict[str, Any]:
    """A valid answer whose overall is `quality_points`, from 0 to 100: positives only."""
    left = quality_points
    tree: dict[str, Any] = {}
    for name, maximum in rubric.MAX_SCORES.items():
        score = min(left, maximum) if name in rubric.POSITIVE else 0
        left -= score
        tree[name] = {"justification": "scripted", "quotes": [], "score": score}
    tree["overall"] = quality_points
    tree["summary"] = "scripted"
    return tree


def completion(
    content: Any, *, finish_reason: str = "stop", refusal: str | None = None
) -> dict[str, Any]:
    """A chat completion with usage numbers."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return {
        "id": "scripted",
        "object": "chat.completion",
        "model": "scripted-judge",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 60},
        },
    }


def body(tree: Any) -> Behaviour:
    """Status 200 with a JSON body."""

    async def behave(request: web.Request) -> web.StreamResponse:
        return web.json_response(tree)

    return behave


def ok(quality_points: float = 40.0) -> Behaviour:
    """A valid judgement."""
    return body(completion(json.dumps(answer_tree(quality_points))))


def text(content: str) -> Behaviour:
    """An answer with any text."""
    return body(completion(content))


def fenced(quality_points: float = 40.0) -> Behaviour:
    """A valid judgement in a code fence."""
    return text("```json\n" + json.dumps(answer_tree(quality_points), indent=1) + "\n```")


def missing_dimension(name: str = "P3") -> Behaviour:
    """A judgement without one of its dimensions."""
    tree = answer_tree()
    del tree[name]
    return text(json.dumps(tree))


def wrong_total(claimed: float = 99.0) -> Behaviour:
    """A judgement of 40 points whose sum is claimed to be another."""
    return text(json.dumps(answer_tree(40.0) | {"overall": claimed}))


def truncated() -> Behaviour:
    """An answer cut off at the cap."""
    return body(completion('{"P1": {"justification": "', finish_reason="length"))


def null_content() -> Behaviour:
    return body(completion(None))


def refusal(message: str = "I cannot judge this.") -> Behaviour:
    return body(completion(None, refusal=message))


def filtered() -> Behaviour:
    return body(completion("", finish_reason="content_filter"))


def status(
    code: int, *, error: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> Behaviour:
    """An HTTP error with an OpenAI-style body."""

    async def behave(request: web.Request) -> web.StreamResponse:
        tree = {"error": error or {"message": f"scripted {code}", "type": "scripted", "code": None}}
        return web.json_response(tree, status=code, headers=headers)

    return behave


def reset_mid_body() -> Behaviour:
    """Headers that promise a body, half of it, then the connection is torn down."""

    async def behave(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices": [')
        assert request.transport is not None
        request.transport.abort()
        return response

    return behave


def reset_at_once() -> Behaviour:
    """The connection is torn down before any answer."""

    async def behave(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return behave


def not_json() -> Behaviour:
    async def behave(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>gateway</html>", content_type="text/html")

    return behave


def slow(delay_s: float, then: Behaviour | None = None) -> Behaviour:
    """Another behaviour after a wait."""

    async def behave(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(delay_s)
        return await (then or ok())(request)

    return behave


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


class ScriptedServer:
    """Serves a script at `base_url` until closed; counts what is in flight."""

    def __init__(
        self,
        script: Iterable[Behaviour] | StoryScript = (),
        *,
        default: Behaviour | None = None,
        models: Behaviour | None = None,
    ) -> None:
        """
        Args:
            script: behaviours in order, or a function that gives each story its own.
            default: what answers when a script is used up; None: `ok()`.
            models: behaviour of GET /v1/models; None: an empty list.
        """
        self._by_story = script if callable(script) else None
        self._queue: deque[Behaviour] = deque([] if callable(script) else script)
        self._story_queues: dict[str, deque[Behaviour]] = {}
        self._default = default or ok()
        self._models = models or body({"object": "list", "data": []})
        self._lock = threading.Lock()
        self.requests: list[Seen] = []  # chat completions only
        self.in_flight = 0
        self.most_in_flight = 0
        self._thread = LoopThread("scripted-server")
        self._thread.start()
        self._thread.call(self._start())

    @property
    def stories(self) -> list[str]:
        """The stories of all requests, in order of arrival."""
        return [seen.story for seen in self.requests]

    def close(self) -> None:
        self._thread.call(self._runner.cleanup())
        self._thread.stop()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.path, dict(request.headers), await request.json())
        with self._lock:
            self.requests.append(seen)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._next(seen)(request)
        finally:
            with self._lock:
                self.in_flight -= 1

    def _next(self, seen: Seen) -> Behaviour:
        queue = self._queue
        if self._by_story is not None:
            story = seen.story
            if story not in self._story_queues:
                self._story_queues[story] = deque(self._by_story(story))
            queue = self._story_queues[story]
        return queue.popleft() if queue else self._default
