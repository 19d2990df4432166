"""One try at one judgement over HTTP, against any OpenAI-compatible `/v1/chat/completions`.

Every failure leaves as a `JudgeFault`. The key comes from the environment variable named in the
configuration; it is blotted out of whatever the endpoint says, and aiohttp's exceptions are not
chained because their representation shows the request's headers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from ..config import JudgeConfig
from . import rubric
from .faults import FaultKind, JudgeFault, classify_status, error_fields, retry_after_s
from .request import Messages

MAX_DETAIL_CHARS = 300
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class Answer:
    """A judge's text and what it cost. Token counts are 0 where the endpoint is silent."""

    text: str
    model: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class JudgeClient:
    """Sends messages to one endpoint; use as an asynchronous context manager."""

    def __init__(self, config: JudgeConfig, base_url: str, *, send_key: bool = True) -> None:
        """Args:
        base_url: endpoint ending in /v1, http or https.
        send_key: False for the local judge, which must not see a provider's key.
        """
        self._config = config
        self._base_url = base_url.rstrip("/")
        self._key = os.environ.get(config.api_key_env, "").strip() if send_key else ""
        self._session: aiohttp.ClientSession | None = None

    @property
    def display_url(self) -> str:
        """The endpoint without user, password or query."""
        return display_url(self._base_url)

    @property
    def has_key(self) -> bool:
        """Whether the environment variable held a key."""
        return bool(self._key)

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0),  # the pool bounds what is in flight
            trust_env=urlsplit(self._base_url).hostname not in LOOPBACK,  # HTTPS_PROXY
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, messages: Messages, *, timeout_s: float, max_tokens: int) -> Answer:
        """One completion.

        Args:
            timeout_s: limit on the whole try, connecting included.
            max_tokens: cap on the answer.

        Raises:
            JudgeFault: of any kind but `invalid`; the text is not parsed here.
        """
        body = await self._request(
            "POST", "/chat/completions", timeout_s, self._body(messages, max_tokens)
        )
        return read_completion(body, self._clean)

    async def list_models(self, *, timeout_s: float) -> list[str]:
        """Names under /models. Raises JudgeFault."""
        body = await self._request("GET", "/models", timeout_s)
        entries = body.get("data")
        if not isinstance(entries, list):
            return []
        return [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]

    async def probe(self, *, timeout_s: float) -> None:
        """An empty request to /chat/completions: costs nothing, tells whether the path exists."""
        await self._request("POST", "/chat/completions", timeout_s, {})

    def _body(self, messages: Messages, max_tokens: int) -> dict[str, Any]:
        config = self._config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": messages,
            "temperature": config.temperature,
            "top_p": config.top_p,
            config.max_tokens_parameter: max_tokens,
        }
        if config.response_format == "json_schema":
            schema = {
                "name": "story_judgement",
                "strict": True,
                "schema": rubric.judgement_schema(),
            }
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif config.response_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    async def _request(
        self, method: str, path: str, timeout_s: float, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        assert self._session is not None  # entered by the pool
        timeout = aiohttp.ClientTimeout(
            total=timeout_s, sock_connect=min(timeout_s, self._config.connect_timeout_s)
        )
        try:
            async with self._session.request(
                method,
                self._base_url + path,
                json=body,
                timeout=timeout,
                allow_redirects=False,  # a redirected POST would lose its body or leak its key
            ) as response:
                raw = await response.read()
                status, headers = response.status, response.headers
        except TimeoutError:
            raise JudgeFault(FaultKind.TIMEOUT, f"no answer within {timeout_s:.1f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise JudgeFault(FaultKind.TRANSIENT, self._describe(error)) from None
        tree = _decode(raw)
        if not 200 <= status < 300:
            raise self._http_fault(status, tree, retry_after_s(headers))
        if not isinstance(tree, dict):
            raise JudgeFault(FaultKind.TRANSIENT, f"HTTP {status} without a JSON object")
        if tree.get("error"):  # some gateways report an upstream failure with status 200
            code = tree["error"].get("code") if isinstance(tree["error"], dict) else None
            inner = code if isinstance(code, int) and 400 <= code < 600 else 500
            raise self._http_fault(inner, tree, retry_after_s(headers))
        return tree

    def _http_fault(self, status: int, tree: Any, wait_s: float | None) -> JudgeFault:
        kind = classify_status(status, tree)
        code, message = error_fields(tree)
        if kind is FaultKind.AUTH:  # providers echo parts of the key in this message
            state = "is set" if self._key else "is not set"
            message = f"environment variable {self._config.api_key_env} {state}"
        parts = [f"HTTP {status}", code, message]
        detail = self._clean(" ".join(filter(None, parts)))
        return JudgeFault(kind, detail, status=status, retry_after_s=wait_s)

    def _describe(self, error: BaseException) -> str:
        text = getattr(error, "strerror", None) or (
            "" if isinstance(error, aiohttp.ClientResponseError) else str(error)
        )
        return self._clean(f"{type(error).__name__} {text}".strip())

    def _clean(self, text: str) -> str:
        """One short line without the key."""
        if self._key:
            text = text.replace(self._key, "[key]")
        return " ".join(text.split())[:MAX_DETAIL_CHARS]


def read_completion(body: dict[str, Any], clean: Callable[[str], str] = str) -> Answer:
    """The answer in a chat completion.

    Raises:
        JudgeFault: `truncated`, `refusal` (refused, filtered or empty), `transient` (no choice).
    """
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise JudgeFault(FaultKind.TRANSIENT, "the answer holds no choice")
    choice = choices[0]
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    finish = choice.get("finish_reason")
    if finish == "length":
        raise JudgeFault(FaultKind.TRUNCATED, "the answer was cut off at the token cap")
    if refusal := message.get("refusal"):
        raise JudgeFault(FaultKind.REFUSAL, clean(str(refusal)))
    text = _content_text(message.get("content"))
    if finish == "content_filter":
        raise JudgeFault(FaultKind.REFUSAL, "the provider's content filter stopped the answer")
    if not text.strip():
        raise JudgeFault(FaultKind.REFUSAL, "the answer is empty")
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    return Answer(
        text=text,
        model=str(body.get("model") or ""),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def display_url(url: str) -> str:
    """`url` without user, password, query and fragment, for logs and errors."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _content_text(content: Any) -> str:
    """A string, or the text parts of a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _decode(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None
