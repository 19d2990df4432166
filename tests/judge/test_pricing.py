"""Costs by the user's prices; what is not known is not a number."""

from __future__ import annotations

from typing import Any

import pytest

from polaris_fast.config_file import load_config
from polaris_fast.judge.pricing import Prices, cost_usd, prices_of
from polaris_fast.types import UserError

PRICES = Prices(input=2.0, cached_input=0.5, output=8.0)


def prices(**settings: Any) -> Prices | None:
    overrides = {f"judge.price_{name}": str(value) for name, value in settings.items()}
    return prices_of(load_config(None, overrides).judge)


@pytest.mark.parametrize(
    ("prompt", "cached", "completion", "micro_usd"),
    [
        (1000, 0, 0, 2000),
        (1000, 1000, 0, 500),
        (1000, 600, 100, 400 * 2 + 600 * 0.5 + 100 * 8),
        (1000, 5000, 0, 500),  # an endpoint that counts more cached tokens than it read
    ],
)
def test_cost_of_an_answer(prompt: int, cached: int, completion: int, micro_usd: float) -> None:
    cost = cost_usd(
        PRICES, prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion
    )
    assert cost == pytest.approx(micro_usd / 1e6)


def test_unknown_stays_unknown_and_free_is_known() -> None:
    tokens = {"prompt_tokens": 10, "cached_tokens": 0, "completion_tokens": 10}
    assert cost_usd(None, **tokens) is None
    assert cost_usd(PRICES, **tokens | {"prompt_tokens": 0}) is None
    assert cost_usd(Prices(0.0, 0.0, 0.0), **tokens) == 0.0


def test_prices_of_a_configuration() -> None:
    assert prices() is None
    assert prices(input=2, output=8) == Prices(2.0, 2.0, 8.0)
    assert prices(input=2, output=8, cached_input=0) == Prices(2.0, 0.0, 8.0)


@pytest.mark.parametrize("given", [{"input": 2}, {"output": 8}, {"cached_input": 1}])
def test_half_a_price_list_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(UserError, match="price_input and price_output must be set together"):
        prices(**given)
