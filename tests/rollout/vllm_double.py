"""A scripted stand-in for vLLM's HTTP routes, for what a real server does not do on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from polaris_fast.loop_thread import LoopThread

Script = Callable[[int, dict[str, Any]], Any]


class VLLMDouble:
    """Answers `/inference/v1/generate` by a script of (how many came before, body)."""

    def __init__(self, script: Script) -> None:
        self.script, self.url = script, ""
        self.asked: list[dict[str, Any]] = []
        self.dropped = 0  # requests whose client went away
        self.is_up, self._looks_left = True, None
        self.posted: list[str] = []  # other routes with what follows the `?`, in order
        self.is_paused = False
        self.drops: dict[str, int] = {}  # routes whose next so many connections break
        self.peers: list[Any] = []  # the client's end of each request's connection

    async def serve(self) -> None:
        app = web.Application()
        app.router.add_post("/inference/v1/generate", self._generate)
        app.router.add_get("/health", self._health)
        app.router.add_get("/is_paused", self._is_paused)
        app.router.add_post("/{route}", self._post)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        await self._runner.cleanup()

    def go_down(self, back_after: int | None) -> None:
        """Unhealthy until its health was asked for so many times; None: for good."""
        self.is_up, self._looks_left = False, back_after

    async def _health(self, _: web.Request) -> web.Response:
        if not self.is_up and self._looks_left is not None:
            self.is_up = self._looks_left <= 0
            self._looks_left -= 1
        return web.Response(status=200 if self.is_up else 503)

    async def _post(self, request: web.Request) -> web.Response:
        self.posted.append(request.path_qs)
        assert request.transport is not None
        self.peers.append(request.transport.get_extra_info("peername"))
        if self.drops.get(request.path, 0) > 0:
            self.drops[request.path] -= 1
            request.transport.abort()
        return web.json_response({})

    async def _is_paused(self, _: web.Request) -> web.Response:
        return web.json_response({"is_paused": self.is_paused})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        try:
            number = len(self.asked) - 1
            while (answer := self.script(number, body)) is None:  # not yet
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        if isinstance(answer, int):
            return web.json_response({"error": {"message": "as scripted"}}, status=answer)
        return web.json_response(answer)


def answer(
    body: dict[str, Any],
    *,
    tokens: int | None = None,
    finish_reason: str = "length",
    version: str = "1",
    spans: list[tuple[str, int, int]] | None = None,
    logp: float = -1.0,
) -> dict[str, Any]:
    """vLLM's response to a request; token ids are the request's seed over and over."""
    asked = body["sampling_params"]
    count = asked["max_tokens"] if tokens is None else tokens
    return {
        "choices": [
            {
                "finish_reason": finish_reason,
                "token_ids": [asked["seed"]] * count,
                "weight_versions": [
                    {"version": label, "start": start, "end": end}
                    for label, start, end in spans or [(version, 0, count)]
                ],
                "logprobs": {"content": [{"token_id": asked["seed"], "logprob": logp}] * count},
            }
        ]
    }


@contextmanager
def doubles(*scripts: Script) -> Iterator[list[VLLMDouble]]:
    """Running stand-ins, one a script."""
    loop = LoopThread("vllm-double")
    loop.start()
    servers = [VLLMDouble(script) for script in scripts]
    try:
        for server in servers:
            loop.call(server.serve())
        yield servers
    finally:
        for server in servers:
            loop.call(server.close())
        loop.stop()
