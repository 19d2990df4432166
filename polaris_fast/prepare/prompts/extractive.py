"""The extracted prompt, held to the same rule as any other."""

from __future__ import annotations

from ...extract_prompt import extract_prompt
from .leak import find_leak


def safe_extract(title: str, story: str) -> str:
    """A prompt made without an endpoint that gives no phrase of the story away.

    A title that is a phrase of the story is left out; what remains are single words.
    """
    prompt = extract_prompt(title, story)
    if find_leak(prompt, story) is None:
        return prompt
    prompt = extract_prompt("", story)
    return prompt if find_leak(prompt, story) is None else "Write a short story."
