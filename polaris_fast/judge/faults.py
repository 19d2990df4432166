"""What can go wrong with one try at a judgement, and how an answer is told apart.

    JudgeFault(kind, detail)
      throttle      429, 529: wait; uses up no try, only the deadline
      quota, auth   no credit, 401, 403, a Retry-After beyond the deadline: the breaker opens at
                    once, jobs wait
      transient     5xx, reset, cut body, nonsense instead of JSON: try again
      timeout       connecting or answering took too long: try again
      truncated     finish_reason is "length": try once more, with a larger cap
      refusal       refused, filtered or empty content, or a story that a filter turns away (400,
                    403, 422): try once more, then the fallback judge
      invalid       the answer breaks the schema: ask again with the validator's message
      inconsistent  several faults that leave the numbers usable: ask again once, else take it
      too_long      the request exceeds the model's context: a configuration error
      request       any other 4xx: a configuration error
      budget        `judge.max_cost_usd` does not pay for this call: the run stops

`JudgeStopped` is a fault after which trying is no use. Details never hold a key: texts from the
endpoint pass through `client.JudgeClient`, which blots it out, and are dropped where providers are
known to echo it (auth).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any


class FaultKind(StrEnum):
    """Failure class of one try; the last one names the failed job in the metrics."""

    THROTTLE = "throttle"
    TRANSIENT = "transient"
    TIMEOUT = "timeout"
    TRUNCATED = "truncated"
    REFUSAL = "refusal"
    INVALID = "invalid"
    INCONSISTENT = "inconsistent"
    QUOTA = "quota"
    AUTH = "auth"
    TOO_LONG = "too_long"
    REQUEST = "request"
    BUDGET = "budget"


class JudgeFault(Exception):
    """One try that gave no judgement.

    Attributes:
        kind: failure class.
        detail: one line for people, free of keys.
        status: HTTP status, or None when there was no answer or it was 2xx.
        retry_after_s: seconds the endpoint asks to wait, or None.
        answer: the judge's text when it was read and found invalid, to ask again with.
    """

    def __init__(
        self,
        kind: FaultKind,
        detail: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        answer: str | None = None,
    ) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.status = status
        self.retry_after_s = retry_after_s
        self.answer = answer


class JudgeStopped(JudgeFault):
    """No request is sent any more: the judge was given up, or the cost budget is spent."""


_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "insufficient_credits"}
_TOO_LONG_CODES = {"context_length_exceeded", "string_above_max_length"}
_TOO_LONG_WORDS = ("context length", "context window", "maximum context", "prompt is too long")
_FILTER_CODES = {
    "content_filter", "content_policy_violation", "data_inspection_failed", "datainspectionfailed",
    "invalid_prompt",
}  # fmt: skip
# Of a story that a provider will not read; gateways say so with 403, others with 400 or 422.
_FILTER_WORDS = (
    "moderation", "flagged", "content policy", "content management policy", "usage polic",
    "content exists risk", "inappropriate content",
)  # fmt: skip
_KEY_WORDS = ("api key", "api_key", "apikey")  # Gemini calls a wrong one a bad request


def classify_status(status: int, body: Any) -> FaultKind:
    """Failure class of an HTTP status above 299 with its (decoded) body."""
    code, message = (text.lower() for text in error_fields(body))
    filtered = any(words in message for words in _FILTER_WORDS)
    if code in _QUOTA_CODES or status == 402:
        return FaultKind.QUOTA
    if status in (429, 529):
        return FaultKind.THROTTLE
    if status in (401, 403):
        return FaultKind.REFUSAL if filtered else FaultKind.AUTH
    if status == 400 and any(words in message for words in _KEY_WORDS):
        return FaultKind.AUTH
    if status == 408:
        return FaultKind.TIMEOUT
    if status >= 500 or status in (409, 425):
        return FaultKind.TRANSIENT
    if code in _FILTER_CODES:
        return FaultKind.REFUSAL
    if (
        status == 413
        or code in _TOO_LONG_CODES
        or any(words in message for words in _TOO_LONG_WORDS)
    ):
        return FaultKind.TOO_LONG
    return FaultKind.REFUSAL if filtered and status in (400, 422) else FaultKind.REQUEST


def error_fields(body: Any) -> tuple[str, str]:
    """(code or type, message) of an error body in any of the usual shapes; "" where absent.

    A list stands for its first mapping (Gemini); FastAPI's message is its `detail`.
    """
    if isinstance(body, list):
        body = next((entry for entry in body if isinstance(entry, Mapping)), None)
    error = (body.get("error") or body) if isinstance(body, Mapping) else body
    if isinstance(error, str):
        return "", error
    if not isinstance(error, Mapping):
        return "", ""
    codes = (error.get(name) for name in ("code", "type", "status"))
    message = error.get("message")
    return (
        next((code for code in codes if isinstance(code, str)), ""),
        message if isinstance(message, str) else _detail(error.get("detail")),
    )


def _detail(detail: Any) -> str:
    """What FastAPI says: a text, or a list of faults with the place of each."""
    if isinstance(detail, list):
        faults = [fault for fault in detail if isinstance(fault, Mapping)]
        return "; ".join(
            f"{'.'.join(map(str, fault.get('loc') or ()))}: {fault.get('msg')}" for fault in faults
        )
    if isinstance(detail, Mapping):
        detail = detail.get("message")
    return detail if isinstance(detail, str) else ""


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After` (seconds or HTTP date); None: unsaid.

    A date in the past is 0; what cannot be read counts as unsaid.
    """
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    text = headers.get("Retry-After")
    if (seconds := _number(text)) is not None:
        return seconds
    if text is None:
        return None
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:  # "-0000": the date is in UTC, of no stated zone
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def _number(text: str | None) -> float | None:
    """A finite number of at least 0, or None."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
