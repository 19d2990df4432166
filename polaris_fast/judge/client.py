"""One try at one judgement over HTTP, against any OpenAI-compatible `/v1/chat/completions`.

Every failure leaves as a `JudgeFault`. The key comes from the environment variable named in the
configuration; it is blotted out of whatever the endpoint says, and aiohttp's exceptions are not
chained because their representation shows the request's headers.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from ..config import JudgeConfig
from . import rubric
from .completion import Answer, read_completion
from .faults import FaultKind, JudgeFault, classify_status, error_fields, retry_after_s
from .request import Messages

MAX_DETAIL_CHARS = 300
CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length")
JSON_BODY = {"Content-Type": "application/json"}
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(slots=True)
class Exchange:
    """What is known of a request while it is under way; filled in by `ask` as things happen."""

    status: int | None = None
    request_id: str | None = None  # the provider's name for it
    first_byte_s: float | None = None  # until the headers were there
    retry_after_s: float | None = None  # as they ask
    in_doubt: bool = False  # it was sent, and no whole answer came: the provider may bill it

    @property
    def succeeded(self) -> bool:
        """Whether its status is 2xx."""
        return self.status is not None and 200 <= self.status < 300


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
        self._proxy: str | None = None
        self._settings: dict[int, str] = {}  # what bodies say besides the messages, by the cap

    @property
    def display_url(self) -> str:
        """The endpoint without user, password or query."""
        return display_url(self._base_url)

    @property
    def key(self) -> str:
        """The key, for those who must keep it out of what they write; "" without one."""
        return self._key

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0),  # the pool bounds what is in flight
            trust_env=False,  # it would also read ~/.netrc, and send what stands there
            trace_configs=[_telling_when_sent()],
        )
        self._proxy = proxy_of(self._base_url)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(
        self,
        messages: Messages,
        *,
        timeout_s: float,
        max_tokens: int,
        exchange: Exchange | None = None,
    ) -> Answer:
        """One completion, whatever it says: `Answer.usable_text` tells whether it can be used.

        Args:
            timeout_s: limit on the whole try, connecting included.
            max_tokens: cap on the answer.
            exchange: filled in, also when this raises or is cancelled.

        Raises:
            JudgeFault: no completion came.
        """
        exchange = exchange or Exchange()
        body = self._body(messages, max_tokens)
        raw = await self._request("POST", "/chat/completions", timeout_s, body, exchange)
        tree = self._read_tree(raw, exchange)
        if exchange.request_id is None and isinstance(tree.get("id"), str):
            exchange.request_id = tree["id"]
        return read_completion(tree, self._clean)

    async def list_models(self, *, timeout_s: float) -> dict[str, int | None]:
        """Names under /models with the tokens each can hold, where told; {}: no list that is known.

        Raises:
            JudgeFault: no JSON came; `request` where the path holds something else.
        """
        tree = _decode(await self._request("GET", "/models", timeout_s))
        if tree is None:
            raise JudgeFault(FaultKind.REQUEST, "GET /models is answered without JSON")
        entries = tree.get("data") if isinstance(tree, dict) else tree  # Together's is bare
        entries = entries if isinstance(entries, list) else []
        return {str(e["id"]): _context(e) for e in entries if isinstance(e, dict) and "id" in e}

    async def probe(self, *, timeout_s: float) -> None:
        """An empty request to /chat/completions: costs nothing, tells whether the path exists."""
        exchange = Exchange()
        raw = await self._request("POST", "/chat/completions", timeout_s, b"{}", exchange)
        self._read_tree(raw, exchange)

    def _body(self, messages: Messages, max_tokens: int) -> bytes:
        """JSON; only what differs from request to request is encoded anew."""
        if max_tokens not in self._settings:
            self._settings[max_tokens] = json.dumps(self._other_fields(max_tokens))
        texts = ", ".join(map(_message_json, messages))
        return f'{{"messages": [{texts}], {self._settings[max_tokens][1:]}'.encode()

    def _other_fields(self, max_tokens: int) -> dict[str, Any]:
        config = self._config
        sampling = {"temperature": config.temperature, "top_p": config.top_p}
        body: dict[str, Any] = {
            "model": config.model,
            **{key: value for key, value in sampling.items() if value is not None},
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
        self,
        method: str,
        path: str,
        timeout_s: float,
        body: bytes | None = None,
        exchange: Exchange | None = None,
    ) -> bytes:
        """The body of an answer with status 2xx. Raises JudgeFault for any other end."""
        assert self._session is not None  # entered by the pool
        timeout = aiohttp.ClientTimeout(
            total=timeout_s, sock_connect=min(timeout_s, self._config.connect_timeout_s)
        )
        exchange = exchange or Exchange()
        begin = time.monotonic()
        try:
            async with self._session.request(
                method,
                self._base_url + path,
                data=body,
                headers=JSON_BODY if body is not None else None,
                timeout=timeout,
                proxy=self._proxy,
                trace_request_ctx=exchange,
                allow_redirects=False,  # a redirected POST would lose its body or leak its key
            ) as response:
                status, headers = response.status, response.headers
                exchange.status = status
                exchange.retry_after_s = retry_after_s(headers)
                exchange.in_doubt = exchange.succeeded
                exchange.first_byte_s = time.monotonic() - begin
                exchange.request_id = headers.get("x-request-id") or headers.get("request-id")
                raw = await response.read()
        except TimeoutError:
            raise JudgeFault(FaultKind.TIMEOUT, f"no answer within {timeout_s:.1f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise JudgeFault(FaultKind.TRANSIENT, self._describe(error)) from None
        if not exchange.succeeded:
            raise self._http_fault(status, _decode(raw), exchange.retry_after_s)
        return raw

    def _read_tree(self, raw: bytes, exchange: Exchange) -> dict[str, Any]:
        """The JSON object of a successful answer. Raises JudgeFault where it is none."""
        tree = _decode(raw)
        if not isinstance(tree, dict):
            raise JudgeFault(FaultKind.TRANSIENT, f"HTTP {exchange.status} without a JSON object")
        exchange.in_doubt = False
        if tree.get("error"):  # some gateways report an upstream failure with status 200
            code = tree["error"].get("code") if isinstance(tree["error"], dict) else None
            inner = code if isinstance(code, int) and 400 <= code < 600 else 500
            raise self._http_fault(inner, tree, exchange.retry_after_s)
        return tree

    def _http_fault(self, status: int, tree: Any, wait_s: float | None) -> JudgeFault:
        kind = classify_status(status, tree)
        code, message = error_fields(tree)
        if kind is FaultKind.AUTH:  # providers echo parts of the key in this message
            state = "is set" if self._key else "is not set"
            variable = self._config.api_key_env
            message = f"environment variable {variable} {state}" if variable else "no key is sent"
        if kind is FaultKind.THROTTLE and (wait_s or 0.0) > self._config.deadline_s:
            kind = FaultKind.QUOTA  # a day's: no judgement can wait for that
            message = f"it asks to wait {wait_s:.0f} s, longer than judge.deadline_s; {message}"
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


def display_url(url: str) -> str:
    """`url` without user, password, query and fragment, for logs and errors."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def proxy_of(url: str) -> str | None:
    """The HTTP proxy that the environment names for `url`; None: it is asked directly."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    if parts.hostname in LOOPBACK or proxy_bypass(host):
        return None
    proxy = getproxies().get(parts.scheme, "")
    proxy = proxy if "://" in proxy or not proxy else f"http://{proxy}"
    return proxy if urlsplit(proxy).scheme in ("http", "https") else None


def _telling_when_sent() -> aiohttp.TraceConfig:
    """Marks an `Exchange` once its body is on its way: a fault before costs nothing."""

    async def sent(
        session: aiohttp.ClientSession,
        context: SimpleNamespace,
        params: aiohttp.TraceRequestChunkSentParams,
    ) -> None:
        if isinstance(context.trace_request_ctx, Exchange):
            context.trace_request_ctx.in_doubt = True

    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(sent)
    return trace


def _message_json(message: dict[str, str]) -> str:
    return _rubric_json(message["content"]) if message["role"] == "system" else json.dumps(message)


@lru_cache(maxsize=8)
def _rubric_json(content: str) -> str:
    """Most of every request, and always the same."""
    return json.dumps({"role": "system", "content": content})


def _context(entry: dict[str, Any]) -> int | None:
    """Context length of a model by the names that vLLM, OpenRouter, Groq and Mistral give it."""
    lengths = (entry.get(name) for name in CONTEXT_FIELDS)
    return next((n for n in lengths if isinstance(n, int) and n > 0), None)  # 0: unknown, Together


def _decode(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):  # nested without end
        return None
