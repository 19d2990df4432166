"""The local judge behind a scripted latency: each story always waits the same 0.5 to 3 seconds."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from polaris_fast.judge.local_server import build_app, find_material
from polaris_fast.judge.loop_thread import LoopThread

Latency = Callable[[str], float]


def uniform_latency(low_s: float, high_s: float) -> Latency:
    """Seconds for a story, spread evenly by its hash."""

    def latency(story: str) -> float:
        digest = hashlib.sha256(story.strip().encode()).digest()
        return low_s + (high_s - low_s) * int.from_bytes(digest[:8], "big") / 2**64

    return latency


@contextmanager
def scripted_judge(latency: Latency) -> Iterator[str]:
    """Serve the local judge with this latency on a free loopback port; yields the base URL."""

    @web.middleware
    async def delay(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.method != "POST":
            return await handler(request)
        arrived = asyncio.get_running_loop().time()
        messages = json.loads(await request.read())["messages"]
        response = await handler(request)
        spent = asyncio.get_running_loop().time() - arrived
        await asyncio.sleep(max(0.0, latency(find_material(messages).story) - spent))
        return response

    async def start() -> tuple[web.AppRunner, str]:
        app = build_app()
        app.middlewares.append(delay)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    thread = LoopThread("scripted-judge")
    thread.start()
    try:
        runner, base_url = thread.call(start())
        try:
            yield base_url
        finally:
            thread.call(runner.cleanup())
    finally:
        thread.stop()
