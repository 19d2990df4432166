"""The tiny models: right shape, seeded, and without side effects."""

import pytest
import torch

from polaris_fast.model.tiny import tiny_config, tiny_model


def test_the_default_is_hybrid():
    config = tiny_config()
    assert config.layer_types == ["linear_attention"] * 3 + ["full_attention"]
    assert config.linear_key_head_dim == config.linear_value_head_dim == 64
    rotated = config.head_dim * config.rope_parameters["partial_rotary_factor"]
    assert sum(config.rope_parameters["mrope_section"]) == rotated / 2


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3", "llama"])
def test_seeded_and_the_global_random_state_is_left_alone(family):
    before = torch.random.get_rng_state()
    first, second = tiny_model(family, seed=3), tiny_model(family, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = tiny_model(family, seed=4)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_heads_tied_or_not(family, tied):
    model = tiny_model(family, tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_unknown_family():
    with pytest.raises(ValueError, match="one of qwen3_5, qwen3, llama, got 'gpt'"):
        tiny_config("gpt")
