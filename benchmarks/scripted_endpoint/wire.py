"""Failures below the answer: statuses, gateways, connections that break, and time that passes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from aiohttp import web

from .behaviours import Behaviour, body, ok

HANG_S = 3600.0  # longer than any client waits


def status(
    code: int,
    *,
    error: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Behaviour:
    """An HTTP error with an OpenAI-style body."""

    async def behave(request: web.Request) -> web.StreamResponse:
        tree = {"error": error or {"message": f"scripted {code}", "type": "scripted", "code": None}}
        return web.json_response(tree, status=code, headers=headers)

    return behave


def throttled_until_date(wait_s: float) -> Behaviour:
    """429 with Retry-After as an HTTP date, whose resolution is a second: rounded down."""

    async def behave(request: web.Request) -> web.StreamResponse:
        until = datetime.now(UTC) + timedelta(seconds=wait_s)
        headers = {"Retry-After": format_datetime(until, usegmt=True)}
        return await status(429, headers=headers)(request)

    return behave


def error_with_status_200(code: int = 502) -> Behaviour:
    """An upstream error that a gateway passes on as a success."""
    return body({"error": {"message": "upstream error", "code": code}})


def not_json() -> Behaviour:
    """A gateway's HTML page with status 200."""

    async def behave(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>gateway</html>", content_type="text/html")

    return behave


def reset_at_once() -> Behaviour:
    """The connection is torn down before any answer."""

    async def behave(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return behave


def reset_mid_body() -> Behaviour:
    """Headers that promise a body, half of it, then the connection is torn down."""

    async def behave(request: web.Request) -> web.StreamResponse:
        response = await _half_a_body(request)
        assert request.transport is not None
        request.transport.abort()
        return response

    return behave


def eof_mid_body() -> Behaviour:
    """Half a body, then an orderly end of the stream, as a TLS peer that just goes away."""

    async def behave(request: web.Request) -> web.StreamResponse:
        response = await _half_a_body(request)
        assert request.transport is not None
        request.transport.close()
        return response

    return behave


async def _half_a_body(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    return response


def slow(delay_s: float, then: Behaviour | None = None) -> Behaviour:
    """Another behaviour after a wait."""

    async def behave(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(delay_s)
        return await (then or ok())(request)

    return behave


def hang() -> Behaviour:
    """No answer for as long as the client waits."""
    return slow(HANG_S)
