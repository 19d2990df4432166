"""Draws: the filtered distribution is the one transformers defines, and rows are independent."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from polaris_fast.rollout import SamplingParams
from polaris_fast.rollout.sampling import draw


def _peer_probs(logits: torch.Tensor, ids: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(params.repetition_penalty)])
    steps.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    return steps(ids, logits.clone()).double().softmax(-1)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(temperature=1.3, top_p=0.8),
        SamplingParams(temperature=1.0, top_p=0.95, top_k=20, repetition_penalty=1.1),
        SamplingParams(top_p=0.01, repetition_penalty=1.5),
    ],
    ids=["plain", "top_k", "top_p", "recipe", "nearly greedy"],
)
def test_the_sampled_distribution_is_transformers_own(params: SamplingParams) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 50, generator=generator)
    ids = torch.tensor([[3, 7, 7, 11]])
    expected = _peer_probs(logits, ids, params)[0]
    seen = torch.zeros(1, 50, dtype=torch.bool)
    seen[0, ids[0]] = True
    n = 20_000  # an even grid of uniforms walks through the whole distribution
    uniforms = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn = draw(logits.expand(n, -1), seen.expand(n, -1), uniforms, params)
    counts = torch.bincount(drawn.tokens, minlength=50) / n
    assert (counts - expected).abs().max() <= 1.0 / n + 1e-9
    assert torch.allclose(drawn.sampler_logps.double().exp(), expected[drawn.tokens], atol=1e-6)
    raw = (logits[0] / params.temperature).log_softmax(-1)
    assert torch.allclose(drawn.rollout_logps, raw[drawn.tokens], atol=1e-5)


def test_extreme_uniforms_stay_inside_the_kept_set() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(2, -1)
    uniforms = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    drawn = draw(logits, None, uniforms, SamplingParams(top_k=2))
    assert drawn.tokens.tolist() == [3, 2]
    assert torch.isfinite(drawn.sampler_logps).all()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 40, generator=generator)
    uniforms = torch.rand(6, dtype=torch.float64, generator=generator)
    params = SamplingParams(top_p=0.9)
    together = draw(logits, None, uniforms, params).tokens
    alone = torch.cat(
        [draw(logits[i : i + 1], None, uniforms[i : i + 1], params).tokens for i in range(6)]
    )
    assert torch.equal(together, alone)


@pytest.mark.parametrize("vocab", [512, 1300])
def test_a_large_vocabulary_is_drawn_block_by_block(vocab: int) -> None:
    """More rows than are taken at a time, and a vocabulary that is no whole number of blocks."""
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(1, vocab, generator=generator)
    n = 5_000
    uniforms = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn = draw(logits.expand(n, -1), None, uniforms, SamplingParams(temperature=0.8))
    expected = (logits[0].double() / 0.8).softmax(-1)
    counts = torch.bincount(drawn.tokens, minlength=vocab) / n
    assert (counts - expected).abs().max() <= 1.0 / n + 1e-6
    assert torch.allclose(drawn.rollout_logps, expected[drawn.tokens].log().float(), atol=2e-6)
    assert torch.equal(drawn.rollout_logps, drawn.sampler_logps)


def test_tokens_without_mass_are_never_drawn() -> None:
    logits = torch.full((3, 1300), float("-inf"))
    logits[:, 600:640] = 0.0  # whole blocks before and after have none
    uniforms = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    drawn = draw(logits, None, uniforms, SamplingParams())
    assert drawn.tokens.tolist() == [600, 620, 639]
    assert torch.allclose(drawn.rollout_logps.exp(), torch.tensor(1 / 40))
