"""An endpoint that answers all three kinds of question, by a rule the tests can reckon with."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from polaris_fast.evaluate.dimensions import DIMENSIONS
from polaris_fast.judge.heuristic import judge_story_json
from polaris_fast.judge.local_server import find_material
from polaris_fast.loop_thread import LoopThread

_STORIES = re.compile(r"<<FIRST STORY \w+>>\n(.*)\n<<END FIRST STORY.*<<SECOND STORY \w+>>\n(.*)\n<<END SECOND", re.DOTALL)  # fmt: skip # noqa: E501
GRADES = dict(zip(DIMENSIONS, (5, 4, 4, 3, 2, 3), strict=True))  # S_Q = 62.5


class JudgeDouble:
    """`answers` maps a kind of question to what is said; the heuristic answers the rubric."""

    def __init__(self) -> None:
        self.asked: list[str] = []  # kinds, in order
        self.num_tokens = 0  # prompts and answers so far
        self.tells_usage = True
        self.latency_s = 0.0
        self.answers: dict[str, Callable[[list[dict[str, str]]], Any]] = {
            "rubric": lambda messages: judge_story_json(*find_material(messages)),
            "dimensions": lambda messages: json.dumps({"reasons": "", **GRADES}),
            "pairwise": _longer_is_better,
        }
        self.base_url = ""

    async def serve(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        messages = body.get("messages")
        if messages is None:  # looked for, without a question
            return web.json_response({"error": {"message": "no messages"}}, status=400)
        kind = _kind(messages)
        self.asked.append(kind)
        answer = self.answers[kind](messages)
        await asyncio.sleep(self.latency_s)
        if isinstance(answer, int):
            return web.json_response({"error": {"message": "as scripted"}}, status=answer)
        prompt = sum(len(message["content"]) for message in messages) // 4
        self.num_tokens += prompt + 100
        usage = {"prompt_tokens": prompt, "completion_tokens": 100}
        return web.json_response(
            {
                "model": "double",
                "choices": [{"message": {"content": answer}, "finish_reason": "stop"}],
                "usage": usage if self.tells_usage else None,
            }
        )


@contextmanager
def judge_double() -> Iterator[JudgeDouble]:
    """A running one."""
    loop = LoopThread("evaluation-double")
    loop.start()
    double = JudgeDouble()
    try:
        loop.call(double.serve())
        yield double
    finally:
        loop.call(double.close())
        loop.stop()


def _kind(messages: list[dict[str, str]]) -> str:
    text = messages[1]["content"] if len(messages) > 1 else ""
    if "<<FIRST STORY" in text:
        return "pairwise"
    return "dimensions" if "<<TEXT" in text else "rubric"


def _longer_is_better(messages: list[dict[str, str]]) -> str:
    found = _STORIES.search(messages[1]["content"])
    assert found is not None
    first, second = (len(story.split()) for story in found.groups())
    better = "tie" if first == second else "first" if first > second else "second"
    return json.dumps({"reasons": "", "better": better})
