"""One vLLM server over HTTP: what the rollouts and the weight sync ask of it.

Token ids go in and come out by `/inference/v1/generate`; text is never tokenized again. The other
routes are those that vLLM has for trainers (`VLLM_SERVER_DEV_MODE=1`).
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from ..base import SamplingParams
from .errors import Dropped, ServerError, Unreachable

_MAX_DETAIL_CHARS = 400
_REPEAT_WAITS_S = (0.2, 1.0)  # before a request whose connection broke is made again


@dataclass(frozen=True)
class Answer:
    """One completion as the server gave it."""

    token_ids: list[int]
    logps: list[float]  # by the server's `--logprobs-mode`
    finish_reason: str  # stop, length, abort, error
    spans: tuple[tuple[str, int, int], ...]  # label of the weights, first token, end

    @property
    def labels(self) -> frozenset[str]:
        """Of all weights that drew its tokens."""
        return frozenset(label for label, _, _ in self.spans)


class VLLMClient:
    """Requests to one server; made and used on the event loop's thread."""

    def __init__(self, base_url: str, session: aiohttp.ClientSession) -> None:
        self.base_url, self._session = base_url, session

    async def generate(
        self, prompt_ids: tuple[int, ...], params: SamplingParams, seed: int, timeout_s: float
    ) -> Answer:
        """Draw one completion; the server drops the row when this is cancelled.

        Raises:
            Unreachable: worth another try. ServerError: the server refuses the request.
        """
        body = {"token_ids": list(prompt_ids), "sampling_params": sampling_body(params, seed)}
        tree = await self.request("POST", "/inference/v1/generate", timeout_s, body)
        return read_answer(tree, self.base_url)

    async def request(
        self, method: str, path: str, timeout_s: float, body: dict[str, Any] | None = None
    ) -> Any:
        """The JSON of the answer, None when it has none.

        Raises:
            Unreachable: no answer within `timeout_s`, no connection, one that broke (Dropped), or a
                status of 5xx.
            ServerError: any other status than 2xx, in the server's words.
        """
        limit = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(
                method, self.base_url + path, json=body, timeout=limit
            ) as response:
                raw = await response.read()
                status = response.status
        except TimeoutError:
            raise Unreachable(f"{path}: no answer within {timeout_s:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(f"{path}: {type(error).__name__} {error}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Dropped(f"{path}: {type(error).__name__} {error}".strip()) from None
        if status >= 500:
            raise Unreachable(f"{path}: HTTP {status} {_words(raw)}".strip())
        if not 200 <= status < 300:
            raise ServerError(f"rollout.vllm: {self.base_url}{path}: HTTP {status} {_words(raw)}")
        return json.loads(raw) if raw else None

    async def repeat(
        self, method: str, path: str, timeout_s: float, body: dict[str, Any] | None = None
    ) -> Any:
        """`request`, made again when its connection breaks: for what may be done twice."""
        for wait_s in _REPEAT_WAITS_S:
            with suppress(Dropped):
                return await self.request(method, path, timeout_s, body)
            await asyncio.sleep(wait_s)
        return await self.request(method, path, timeout_s, body)

    async def is_paused(self, timeout_s: float) -> bool:
        """Whether it draws nothing until it is told to `/resume`."""
        answer = await self.repeat("GET", "/is_paused", timeout_s)
        return bool(answer["is_paused"])

    async def is_healthy(self, timeout_s: float = 5.0) -> bool:
        """Whether it answers, and its engine runs."""
        try:
            await self.repeat("GET", "/health", timeout_s)
        except (Unreachable, ServerError):
            return False
        return True

    async def processes_logprobs(self, timeout_s: float) -> bool:
        """Whether its log-probs are those after temperature and filters (`processed_logprobs`).

        With top-k 1 the processed distribution has one token, of log-prob 0; the raw one has not.
        """
        one = SamplingParams(top_k=1, max_completion_length=1)
        # More than one token: vLLM's delta-net layers on CPUs take no shorter prompt.
        answer = await self.generate((0, 0, 0, 0), one, 0, timeout_s)
        return answer.logps == [0.0]


def sampling_body(params: SamplingParams, seed: int) -> dict[str, Any]:
    """The request's `sampling_params`; only our own stop ids end a completion."""
    return {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "repetition_penalty": params.repetition_penalty,
        "max_tokens": params.max_completion_length,
        "stop_token_ids": sorted(params.stop_ids),
        "ignore_eos": True,
        "seed": seed,
        "logprobs": 0,  # of the drawn token alone
        "detokenize": False,
    }


def read_answer(tree: Any, base_url: str) -> Answer:
    """The first choice of a response.

    Raises:
        ServerError: it is not of vLLM's form, so this is another server or version.
    """
    try:
        choice = tree["choices"][0]
        entries = choice["logprobs"]["content"] or []
        answer = Answer(
            token_ids=list(choice["token_ids"]),
            logps=[float(entry["logprob"]) for entry in entries],
            finish_reason=str(choice["finish_reason"]),
            spans=tuple(
                (str(span["version"]), int(span["start"]), int(span["end"]))
                for span in choice["weight_versions"] or []
            ),
        )
    except (KeyError, IndexError, TypeError) as error:
        raise ServerError(
            f"rollout.vllm: {base_url} answers in a form this version does not know "
            f"({type(error).__name__} {error}); run vLLM 0.32"
        ) from error
    if len(answer.logps) != len(answer.token_ids):
        raise ServerError(
            f"rollout.vllm: {base_url} gave {len(answer.logps)} log-probs for "
            f"{len(answer.token_ids)} tokens; run vLLM 0.32"
        )
    return answer


async def first_error(*coroutines: Any) -> list[Any]:
    """Results of all; the first exception cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _words(raw: bytes) -> str:
    """The message of an error body, on one short line."""
    try:
        tree = json.loads(raw)
        error = tree.get("error", tree) if isinstance(tree, dict) else tree
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        text = raw.decode(errors="replace")
    return " ".join(text.split())[:_MAX_DETAIL_CHARS]
