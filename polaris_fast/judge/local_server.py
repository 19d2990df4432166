"""The local heuristic judge behind a real OpenAI-compatible HTTP endpoint, by aiohttp.

    GET  /health                 {"status": "ok", ...}
    GET  /v1/models              the one model, with its disclaimer
    POST /v1/chat/completions    an answer in the rubric's JSON, with usage numbers

    with LocalJudge() as judge:
        judge.base_url           http://127.0.0.1:<free port>/v1

Streaming, tools and several choices are not offered. The sampling settings of a request are
ignored: there is nothing to sample.
"""

from __future__ import annotations

import asyncio
import json
import logging
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from ..loop_thread import LoopThread
from .heuristic import DISCLAIMER, MODEL_NAME, judge_story_json
from .request import Material, read_material

MAX_BODY_BYTES = 16 * 2**20
CREATED = 1_767_225_600  # a fixed time stamp: the same request gives the same bytes


class LocalJudge:
    """The server in a daemon thread with a loop of its own, on a free loopback port."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Starts serving at once. Raises OSError when the port is taken."""
        self._thread = LoopThread("local-judge")
        self._thread.start()
        try:
            self._runner, self.base_url = self._thread.call(start_server(host, port))
        except BaseException:
            self._thread.stop()
            raise

    def close(self) -> None:
        """Stop serving; may be called twice."""
        if self._thread.running:
            self._thread.call(self._runner.cleanup())
        self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def start_server(host: str, port: int) -> tuple[web.AppRunner, str]:
    """Start serving on the running loop: the runner, to clean up, and the base URL."""
    runner = web.AppRunner(build_app(), access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except BaseException:
        await runner.cleanup()
        raise
    bound_port = runner.addresses[0][1]
    shown_host = f"[{host}]" if ":" in host else host
    return runner, f"http://{shown_host}:{bound_port}/v1"


async def serve_forever(host: str, port: int) -> None:
    """Serve until cancelled; prints the address."""
    runner, base_url = await start_server(host, port)
    try:
        print(f"{MODEL_NAME} at {base_url}\n{DISCLAIMER}", flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def build_app() -> web.Application:
    """The aiohttp application, without state."""
    app = web.Application(client_max_size=MAX_BODY_BYTES, logger=logging.getLogger(__name__))
    app.router.add_get("/health", _health)
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/chat/completions", _complete)
    return app


async def _health(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok", "model": MODEL_NAME})


async def _models(request: web.Request) -> web.Response:
    model = {
        "id": MODEL_NAME,
        "object": "model",
        "created": CREATED,
        "owned_by": "polaris_fast",
        "description": DISCLAIMER,
    }
    return web.json_response({"object": "list", "data": [model]})


async def _complete(request: web.Request) -> web.Response:
    try:
        body = json.loads(await request.read())
        messages = body["messages"]
        material = find_material(messages)
        prompt_text = "".join(str(message.get("content", "")) for message in messages)
    except (ValueError, LookupError, TypeError, AttributeError):
        return _bad_request("the body must be JSON with `messages`, the last of them a user's")
    answer = judge_story_json(material.prompt, material.story)
    usage = _usage(prompt_text, answer)
    return web.json_response(
        {
            "id": "chatcmpl-local-heuristic",
            "object": "chat.completion",
            "created": CREATED,
            "model": MODEL_NAME,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer},
                    "finish_reason": "stop",
                }
            ],
            "usage": usage,
        }
    )


def find_material(messages: list[dict[str, Any]]) -> Material:
    """Prompt and story of the first user message with blocks; else its whole text is the story.

    Raises:
        LookupError: there is no user message.
    """
    texts = [str(m.get("content") or "") for m in messages if m.get("role") == "user"]
    found = next(filter(None, map(read_material, texts)), None)
    return found or Material("", texts[0])


def _usage(prompt: str, answer: str) -> dict[str, Any]:
    """Token numbers by the rule of thumb of four characters a token; nothing is cached."""
    prompt_tokens, completion_tokens = -(-len(prompt) // 4), -(-len(answer) // 4)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def _bad_request(message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "code": None}
    return web.json_response({"error": error}, status=400)
