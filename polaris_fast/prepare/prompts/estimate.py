"""What the endpoint will probably cost, told before the first call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...judge.pricing import Prices, cost_usd
from ..document import Story
from .messages import Messages, plan_messages, prompt_messages

BYTES_PER_TOKEN = 4.0  # of English prose
PROMPT_TOKENS, PLAN_TOKENS = 150, 450  # of an answer


@dataclass(slots=True)
class Estimate:
    """Calls that are not in the journal, if no answer has to be asked for again."""

    num_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, messages: Messages, completion_tokens: int) -> None:
        """Count one call."""
        self.num_calls += 1
        self.prompt_tokens += tokens_of(messages)
        self.completion_tokens += completion_tokens

    def cost_usd(self, prices: Prices | None) -> float | None:
        """USD, or None where the prices are unknown."""
        return cost_usd(
            prices,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=0,
            completion_tokens=self.completion_tokens,
        )

    def line(self, prices: Prices | None) -> str:
        """One line for people."""
        cost = self.cost_usd(prices)
        money = f"about {cost or 0.0:.2f} USD"
        if cost is None and self.num_calls:
            money = "cost unknown without --price-input and --price-output"
        return (
            f"{self.num_calls:,} calls, about {self.prompt_tokens:,} tokens in and "
            f"{self.completion_tokens:,} out: {money}"
        )


def estimate(stories: Iterable[Story], *, reasoning: bool) -> Estimate:
    """The calls that these stories need; those with a prompt of their own need none for it."""
    total = Estimate()
    for story in stories:
        if story.prompt_from != "source":
            total.add(prompt_messages(story), PROMPT_TOKENS)
        if reasoning and not story.reasoning:
            total.add(plan_messages(story, story.prompt), PLAN_TOKENS)
    return total


def tokens_of(messages: Messages) -> int:
    """Tokens of a request, by its bytes."""
    return int(sum(len(m["content"].encode()) for m in messages) / BYTES_PER_TOKEN) + 8
