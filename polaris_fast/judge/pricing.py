"""What a judgement costs, by the prices of the configuration; unknown stays unknown.

Prices change and are the user's to state: none are built in here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import JudgeConfig

TOKENS_PER_PRICE = 1_000_000
# To be logged once with the endpoint and how costs are booked.
NO_USAGE = "%s does not count the tokens of its answers (no `usage`): costs are booked %s"


@dataclass(frozen=True, slots=True)
class Prices:
    """USD per million tokens."""

    input: float  # prompt tokens that no cache held
    cached_input: float  # prompt tokens from the provider's prefix cache
    output: float  # completion tokens, reasoning included


def prices_of(config: JudgeConfig) -> Prices | None:
    """The judge's prices; None where `judge.price_input` and `judge.price_output` are not set.

    Without `judge.price_cached_input` cached tokens cost what others do.
    """
    if config.price_input is None or config.price_output is None:
        return None
    cached = config.price_cached_input
    return Prices(
        input=config.price_input,
        cached_input=config.price_input if cached is None else cached,
        output=config.price_output,
    )


def cost_usd(
    prices: Prices | None, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int
) -> float | None:
    """((prompt - cached) * input + cached * cached_input + completion * output) / 1e6, in USD.

    Args:
        prompt_tokens: cached ones included, as endpoints count them.
        cached_tokens: of the prompt's tokens; more than there are count as all.
        completion_tokens: reasoning included.

    Returns:
        None where the price is unknown or the endpoint names no prompt tokens.
    """
    if prices is None or prompt_tokens <= 0:
        return None
    cached = min(cached_tokens, prompt_tokens)
    price = (
        (prompt_tokens - cached) * prices.input
        + cached * prices.cached_input
        + completion_tokens * prices.output
    )
    return price / TOKENS_PER_PRICE
