"""Reward callables as a user would write them."""

from __future__ import annotations

from typing import Any


def length_of(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    assert len(columns["uid"]) == len(completions)
    return [len(c.split()) / 10 for c in completions]


async def length_of_async(
    prompts: list[str], completions: list[str], **columns: Any
) -> list[float | None]:
    return [len(c.split()) / 10 for c in completions]


def constant(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [0.5] * len(completions)
