"""What an endpoint can answer: coroutine functions of the request.

Valid judgements come in the shapes that real judges give them, useless ones in every shape that a
client has to tell apart; `wire` has the failures below the answer. None of them knows of seeds or
stories: `script` chooses among them.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from polaris_fast.judge import rubric

Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]

MODEL = "scripted-judge"
USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 60},
}


# answers ---------------------------------------------------------------------------------------


def tree_of_scores(
    scores: Mapping[str, float], overall: float, quotes: Mapping[str, list[str]] | None = None
) -> dict[str, Any]:
    """An answer in the rubric's schema.

    Args:
        scores: points of every dimension.
        overall: the total that the judge claims.
        quotes: evidence by dimension; none where absent.
    """
    tree: dict[str, Any] = {
        name: {
            "justification": f"Scripted evidence for {name}, of about the length a judge gives it.",
            "quotes": (quotes or {}).get(name, []),
            "score": score,
        }
        for name, score in scores.items()
    }
    return tree | {"overall": overall, "summary": "scripted"}


def answer_tree(quality_points: float = 40.0) -> dict[str, Any]:
    """A valid answer whose overall is `quality_points`, from 0 to 100: positives only."""
    left = quality_points
    scores: dict[str, float] = {}
    for name, maximum in rubric.MAX_SCORES.items():
        scores[name] = min(left, maximum) if name in rubric.POSITIVE else 0
        left -= scores[name]
    return tree_of_scores(scores, quality_points)


def completion(
    content: Any,
    *,
    finish_reason: str = "stop",
    refusal: str | None = None,
    usage: Mapping[str, Any] = USAGE,
) -> dict[str, Any]:
    """A chat completion with usage numbers."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return {
        "id": "scripted",
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": dict(usage),
    }


def body(tree: Any) -> Behaviour:
    """Status 200 with a JSON body."""

    async def behave(request: web.Request) -> web.StreamResponse:
        return web.json_response(tree)

    return behave


def text(content: str) -> Behaviour:
    """An answer with any text."""
    return body(completion(content))


def ok(quality_points: float = 40.0) -> Behaviour:
    """A valid judgement."""
    return text(json.dumps(answer_tree(quality_points)))


def fence(tree: Any) -> str:
    """JSON in a code fence, as chat models like to send it."""
    return "```json\n" + json.dumps(tree, indent=1) + "\n```"


def fenced(quality_points: float = 40.0) -> Behaviour:
    """A valid judgement in a code fence."""
    return text(fence(answer_tree(quality_points)))


def wrong_total(claimed: float = 99.0) -> Behaviour:
    """A judgement of 40 points whose sum is claimed to be another."""
    return text(json.dumps(answer_tree(40.0) | {"overall": claimed}))


# invalid, truncated, refused -------------------------------------------------------------------


def missing_dimension(name: str = "P3") -> Behaviour:
    """A judgement without one of its dimensions."""
    tree = answer_tree()
    del tree[name]
    return text(json.dumps(tree))


def duplicate_dimension(name: str = "P1") -> Behaviour:
    """A judgement with one dimension twice, and two different scores."""
    tree = answer_tree()
    twice = json.dumps({name: tree[name] | {"score": 1}})
    return text(twice[:-1] + ", " + json.dumps(tree)[1:])


def out_of_range(name: str = "P1") -> Behaviour:
    """A judgement with more points than the dimension has."""
    tree = answer_tree()
    tree[name]["score"] = rubric.MAX_SCORES[name] + 1
    return text(json.dumps(tree))


def not_a_number(name: str = "P2") -> Behaviour:
    """A judgement with NaN for a score, which Python's own JSON reader would accept."""
    tree = answer_tree()
    tree[name]["score"] = float("nan")
    return text(json.dumps(tree))


def said_twice() -> Behaviour:
    """Two whole judgements in one answer, which do not agree."""
    return text(json.dumps(answer_tree(40.0)) + "\n" + json.dumps(answer_tree(60.0)))


def broken_json() -> Behaviour:
    """A judgement whose JSON breaks off although the model says it has finished."""
    return text(json.dumps(answer_tree())[:-40])


def prose() -> Behaviour:
    """An opinion instead of the JSON object."""
    return text("A charming story; I would give it high marks.")


def truncated() -> Behaviour:
    """An answer cut off at the cap."""
    return body(completion('{"P1": {"justification": "', finish_reason="length"))


def whitespace_loop() -> Behaviour:
    """White space until the cap, which constrained decoding can fall into."""
    return body(completion('{"P1":' + " \n" * 2000, finish_reason="length"))


def null_content() -> Behaviour:
    """An answer whose content is null."""
    return body(completion(None))


def refusal(message: str = "I cannot judge this.") -> Behaviour:
    """An answer in the refusal field."""
    return body(completion(None, refusal=message))


def filtered() -> Behaviour:
    """An answer that the provider's content filter stopped."""
    return body(completion("", finish_reason="content_filter"))
