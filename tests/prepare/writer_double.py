"""An endpoint whose answers a test chooses, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from polaris_fast.loop_thread import LoopThread

Messages = list[dict[str, str]]
Reply = Callable[[Messages, int], "str | int"]  # (messages, index of the call) -> text or status


class WriterDouble:
    """Counts what it is asked; `reply` gives the answer's text, or a status to fail with."""

    def __init__(self, reply: Reply, *, latency_s: float = 0.0) -> None:
        self.reply, self.latency_s = reply, latency_s
        self.asked: list[Messages] = []
        self.keys: set[str] = set()
        self.base_url = ""
        self.tells_usage = True

    async def answer(self, request: web.Request) -> web.StreamResponse:
        tree: dict[str, Any] = await request.json()
        if "messages" not in tree:
            return web.json_response({"error": {"message": "no messages"}}, status=400)
        self.keys.add(request.headers.get("Authorization", ""))
        self.asked.append(tree["messages"])
        said = self.reply(tree["messages"], len(self.asked) - 1)
        await asyncio.sleep(self.latency_s)
        if isinstance(said, int):
            return web.json_response({"error": {"message": "scripted"}}, status=said)
        message = {"role": "assistant", "content": said}
        usage = {"prompt_tokens": 1000, "completion_tokens": 100}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        counted = {"usage": usage} if self.tells_usage else {}
        return web.json_response({"model": "writer", "choices": [choice], **counted})

    async def models(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"data": [{"id": "writer"}]})


@contextmanager
def writer_double(reply: Reply, *, latency_s: float = 0.0) -> Iterator[WriterDouble]:
    """A running endpoint."""
    double = WriterDouble(reply, latency_s=latency_s)
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions", double.answer)
    app.router.add_get("/v1/models", double.models)
    runner = web.AppRunner(app)
    thread = LoopThread("writer-double")
    thread.start()

    async def start() -> str:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    double.base_url = thread.call(start())
    try:
        yield double
    finally:
        thread.call(runner.cleanup())
        thread.stop()
