"""The start-up comparison of log-probs, with transformers' generation as the rollout engine."""

from __future__ import annotations

import pytest

from polaris_fast.config import Config
from polaris_fast.model.load import prepare_model
from polaris_fast.model.tiny import tiny_model
from polaris_fast.rollout.hf import HFEngine
from polaris_fast.rollout_parity import check_logprobs
from polaris_fast.types import UserError

PROMPT = list(range(5, 25))


def model(seed: int) -> object:
    return prepare_model(tiny_model("qwen3", vocab_size=128, seed=seed, initializer_range=0.2))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_same_model_passes_and_the_gap_is_told(temperature: float) -> None:
    config = Config(temperature=temperature)
    words = check_logprobs(HFEngine(model(0), 8), model(0), PROMPT, config)
    assert "over 32 tokens" in words
    assert float(words.split("differ by ")[1].split()[0]) < 1e-5


def test_another_model_is_refused() -> None:
    with pytest.raises(UserError, match="holds another model"):
        check_logprobs(HFEngine(model(0), 8), model(1), PROMPT, Config())
