"""What the journal keeps of one request."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Purpose(StrEnum):
    """Why a request is sent."""

    FIRST = "first"
    RETRY = "retry"
    HEDGE = "hedge"  # a second one beside a slow first one, paid knowingly
    REASK = "reask"  # with the validator's message
    CANARY = "canary"
    CLEAN = "clean"  # of a flagged story without its flagged spans


LOST = "lost"  # fault of an attempt whose process was killed before its answer was kept


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """How one request ended. Seconds, tokens, USD; None where it is not known."""

    status: int | None = None  # HTTP
    fault: str | None = None  # failure class; None: an answer that could be used
    request_id: str | None = None  # the provider's name for the request
    model: str | None = None  # as the answer names it
    queue_s: float | None = None  # from the wish to send to the sending
    first_byte_s: float | None = None  # from the sending to the answer's headers
    total_s: float | None = None  # from the sending to the answer's end
    prompt_tokens: int = 0  # cached ones included
    cached_tokens: int = 0
    completion_tokens: int = 0  # reasoning included
    reasoning_tokens: int = 0
    cost_usd: float | None = None
    text: str | None = None  # the judge's answer as it came
    detail: str | None = None  # of a fault, one line
