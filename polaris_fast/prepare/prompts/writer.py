"""A prompt, and if wanted a plan, for every story; each answer is checked before it is taken."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace

from ..document import Story
from .endpoint import Endpoint
from .messages import (
    Messages,
    ask_again,
    cut_plan,
    plain_answer,
    plan_messages,
    plan_problem,
    prompt_messages,
    prompt_problem,
)


@dataclass(slots=True)
class Written:
    """How prompts and plans came to be: counts of stories."""

    prompts: Counter[str] = field(default_factory=Counter)
    plans: Counter[str] = field(default_factory=Counter)


class PromptWriter:
    """Turns stories into stories with prompts; the extracted prompt stays where an answer fails."""

    def __init__(self, endpoint: Endpoint, *, reasoning: bool) -> None:
        self._endpoint, self._reasoning = endpoint, reasoning
        self.written = Written()

    async def write(self, story: Story) -> Story:
        """The story with its prompt and plan. Raises PromptsStopped."""
        if story.prompt_from != "source":
            story = await self._with_prompt(story)
        if self._reasoning and not story.reasoning:
            story = replace(story, reasoning=await self._plan(story))
        return story

    async def _with_prompt(self, story: Story) -> Story:
        messages = prompt_messages(story)
        prompt = await self._ask(messages)
        problem = prompt_problem(prompt, story) if prompt is not None else None
        if prompt is not None and problem is not None:
            self.written.prompts[f"asked again: {problem[0]}"] += 1
            prompt = await self._ask(ask_again(messages, prompt, problem[1]))
            problem = prompt_problem(prompt, story) if prompt is not None else None
        if prompt is None or problem is not None:
            why = problem[0] if problem else "no answer"
            self.written.prompts[f"extracted: {why}"] += 1
            return story
        self.written.prompts["from the endpoint"] += 1
        return replace(story, prompt=prompt, prompt_from="endpoint")

    async def _plan(self, story: Story) -> str:
        messages = plan_messages(story, story.prompt)
        plan = await self._ask(messages)
        problem = plan_problem(plan) if plan is not None else None
        if plan is not None and problem is not None:
            self.written.plans["asked again: length"] += 1
            plan = await self._ask(ask_again(messages, plan, problem))
        kept = cut_plan(plan or "")
        self.written.plans["from the endpoint" if kept else "missing"] += 1
        return kept

    async def _ask(self, messages: Messages) -> str | None:
        text = await self._endpoint.ask(messages)
        return None if text is None else plain_answer(text)


async def write_all(
    writer: PromptWriter,
    stories: Iterator[tuple[int, Story]],
    done: Callable[[int, Story], None],
    *,
    concurrency: int,
) -> None:
    """Write for all stories, at most `concurrency` in memory at once.

    Args:
        done: called with each story when it has its prompt, in any order.
    """

    async def serve() -> None:
        for number, story in stories:
            done(number, await writer.write(story))

    await _all(serve, concurrency)


async def _all(serve: Callable[[], Awaitable[None]], num: int) -> None:
    """The first error is raised when all have ended: answers under way are paid for, and kept."""
    tasks = [asyncio.ensure_future(serve()) for _ in range(num)]
    try:
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    except asyncio.CancelledError:  # Ctrl-C: what is under way is given up
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    errors = [error for error in ended if isinstance(error, BaseException)]
    if errors:
        raise errors[0]
