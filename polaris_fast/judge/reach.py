"""The check before a run: does the configured judge answer, and does it take the key?"""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urlsplit

from ..config import JudgeConfig
from ..types import UserError
from .client import JudgeClient, display_url
from .faults import FaultKind, JudgeFault

log = logging.getLogger(__name__)

TRIES = 3


def check_url(base_url: str, key: str = "judge.base_url") -> str:
    """`base_url` itself, `key`'s value.

    Raises:
        UserError: no http(s) address with a host, or one that holds a password or a query: they
            would stand in the run's config, and no path could follow a query.
    """
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises for a port that is no number
    except ValueError:
        usable = False
    if usable and ("@" in parts.netloc or parts.query or parts.fragment):
        section = key.removesuffix(".base_url")
        raise UserError(
            f"{key}: {display_url(base_url)} is given with a user name, a password or a query; "
            "leave them out and put the key into the environment variable that "
            f"{section}.api_key_env names"
        )
    if not usable:
        raise UserError(
            f"{key}: {base_url!r} is no http(s) address; give the endpoint up to /v1, for "
            "example http://127.0.0.1:8000/v1, or null for the local heuristic judge"
        )
    return base_url


async def check_reachable(
    client: JudgeClient, config: JudgeConfig, *, section: str = "judge", wait_s: float = 0.5
) -> dict[str, int | None]:
    """List the endpoint's models, and ask /chat/completions where there is no such list.

    Costs no tokens. Throttling and a quota that is used up count as reachable here: judgements
    handle the first and report the second. A reset or a failing server is tried three times,
    `wait_s` and then twice that apart.

    Returns:
        Tokens that each listed model can hold, None where untold; {} without a list.

    Raises:
        UserError: no connection, 401 or 403, a failing server, or no such path.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return await _look(client, config, section)
        except JudgeFault as fault:
            if fault.kind in (FaultKind.THROTTLE, FaultKind.QUOTA):
                log.warning("judge %s: %s", client.display_url, fault.detail)
                return {}
            retry = fault.kind is FaultKind.TRANSIENT and attempt < TRIES
            if not retry:
                raise user_error(client, config, fault, section) from None
        await asyncio.sleep(wait_s * attempt)
    raise AssertionError("the last try returns or raises")


async def _look(client: JudgeClient, config: JudgeConfig, section: str) -> dict[str, int | None]:
    timeout_s = config.connect_timeout_s
    try:
        models = await client.list_models(timeout_s=timeout_s)
    except JudgeFault as fault:
        if fault.kind is not FaultKind.REQUEST:
            raise
    else:
        if models and config.model not in models:
            log.warning(
                "%s.model: %r is not among the models that %s lists (%s)",
                section,
                config.model,
                client.display_url,
                ", ".join(list(models)[:5]) + (", ..." if len(models) > 5 else ""),
            )
        return models
    try:
        await client.probe(timeout_s=timeout_s)
    except JudgeFault as fault:
        complaint = fault.kind in (FaultKind.REQUEST, FaultKind.REFUSAL)  # about the body
        if not complaint or fault.status in (404, 405):
            raise
    return {}


def user_error(
    client: JudgeClient, config: JudgeConfig, fault: JudgeFault, section: str
) -> UserError:
    """A fault at the start in the user's terms."""
    where = f"{section}.base_url: the judge at {client.display_url}"
    if fault.kind is FaultKind.AUTH:
        return UserError(
            f"{where} refuses the key ({fault.detail}); put a valid key into {config.api_key_env}, "
            f"or name another variable with {section}.api_key_env"
        )
    if fault.kind is FaultKind.QUOTA:
        return UserError(
            f"{where} has no credit left ({fault.detail}); pay in, or give another judge"
        )
    if fault.kind is FaultKind.REQUEST:
        base = client.display_url.removesuffix("/chat/completions").removesuffix("/v1") + "/v1"
        remedy = f"give the address up to /v1, for example {base}"
        if base == client.display_url:
            remedy = "correct it, or set it to null for the local heuristic judge"
        return UserError(f"{where} has no chat completions ({fault.detail}); {remedy}")
    return UserError(
        f"{where} cannot be reached ({fault.detail}); start it, correct {section}.base_url, or set "
        "it to null for the local heuristic judge"
    )
