"""A chat completion as it came: what the judge said, how it ended, what it used up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .faults import FaultKind, JudgeFault


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion as it came, usable or not, and what it used up.

    Token counts are 0 where the endpoint is silent.
    """

    text: str
    model: str
    finish_reason: str = "stop"
    refusal: str = ""
    prompt_tokens: int = 0  # cached ones included
    cached_tokens: int = 0
    completion_tokens: int = 0  # reasoning included
    reasoning_tokens: int = 0

    def usable_text(self) -> str:
        """The judge's words.

        Raises:
            JudgeFault: `truncated`, or `refusal` (refused, filtered or empty).
        """
        if self.finish_reason == "length":
            raise JudgeFault(FaultKind.TRUNCATED, "the answer was cut off at the token cap")
        if self.refusal:
            raise JudgeFault(FaultKind.REFUSAL, self.refusal)
        if self.finish_reason == "content_filter":
            raise JudgeFault(FaultKind.REFUSAL, "the provider's content filter stopped the answer")
        if not self.text.strip():
            raise JudgeFault(FaultKind.REFUSAL, "the answer is empty")
        return self.text


def read_completion(body: dict[str, Any], clean: Callable[[str], str] = str) -> Answer:
    """The answer in a chat completion; `clean` shortens what is shown to people.

    Raises:
        JudgeFault: `transient`: there is no choice in it.
    """
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise JudgeFault(FaultKind.TRANSIENT, "the answer holds no choice")
    message = choices[0].get("message")
    message = message if isinstance(message, dict) else {}
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt_tokens = _count(usage.get("prompt_tokens"))
    # Gemini counts its thinking in the total alone, and bills it as output.
    rest = _count(usage.get("total_tokens")) - prompt_tokens if prompt_tokens else 0
    return Answer(
        text=_content_text(message.get("content")),
        model=str(body.get("model") or ""),
        finish_reason=str(choices[0].get("finish_reason") or ""),
        refusal=clean(str(message.get("refusal") or "")),
        prompt_tokens=prompt_tokens,
        cached_tokens=_detail(usage, "prompt_tokens_details", "cached_tokens"),
        completion_tokens=max(_count(usage.get("completion_tokens")), rest),
        reasoning_tokens=_detail(usage, "completion_tokens_details", "reasoning_tokens"),
    )


def _content_text(content: Any) -> str:
    """A string, or the text parts of a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _detail(usage: dict[str, Any], part: str, name: str) -> int:
    details = usage.get(part)
    return _count(details.get(name)) if isinstance(details, dict) else 0
