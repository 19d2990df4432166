"""The growing cache holds what transformers' own would, through growth and rows that leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from polaris_fast.model.load import prepare_model
from polaris_fast.model.tiny import Family, tiny_model
from polaris_fast.rollout.cache import GrowingLayer, growing_cache


def _feed(cache: Any, lengths: list[int], keep: dict[int, list[int]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows, seen = 5, []
    for i, length in enumerate(lengths):
        if i in keep:
            cache.reorder_cache(torch.tensor(keep[i]))
            rows = len(keep[i])
        new = torch.randn(2, rows, 2, length, 4, generator=generator)
        keys, values = cache.layers[0].update(new[0], new[1])
        seen += [keys.clone(), values.clone()]
    return seen


def test_keys_and_values_are_those_of_a_dynamic_cache() -> None:
    config = tiny_model("qwen3", num_layers=1).config
    lengths = [7, *[1] * 70, 3, *[1] * 100]  # past the first room twice
    keep = {1: [4, 0, 0, 2, 3, 1], 60: [0, 2, 5], 65: [1, 0], 130: [1]}
    ours, theirs = growing_cache(config), DynamicCache(config=config)
    for mine, other in zip(_feed(ours, lengths, keep), _feed(theirs, lengths, keep), strict=True):
        assert torch.equal(mine, other)
    assert ours.get_seq_length() == theirs.get_seq_length() == sum(lengths)


def test_a_token_is_written_where_there_is_room() -> None:
    layer: Any = growing_cache(tiny_model("qwen3", num_layers=1).config).layers[0]
    _feed_one(layer, 10)
    before = layer.keys.data_ptr()
    _feed_one(layer, 1)
    assert layer.keys.data_ptr() == before and layer.keys.shape[-2] == 11


def _feed_one(layer: GrowingLayer, length: int) -> None:
    layer.update(torch.ones(2, 1, length, 4), torch.ones(2, 1, length, 4))


def test_rows_that_leave_do_not_share_memory_with_the_old_ones() -> None:
    layer: Any = growing_cache(tiny_model("qwen3", num_layers=1).config).layers[0]
    _feed_one(layer, 3)
    old = layer.keys
    layer.reorder_cache(torch.tensor([1]))
    layer.update(torch.full((1, 1, 1, 4), 9.0), torch.full((1, 1, 1, 4), 9.0))
    assert old.shape == (2, 1, 3, 4) and bool((old == 1).all())


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3", "llama"])
@torch.no_grad()
def test_decoding_gives_the_logits_of_a_whole_forward(family: Family) -> None:
    """Left-padded rows of two lengths, one of which leaves on the way."""
    model: Any = prepare_model(tiny_model(family, num_heads=4, num_key_value_heads=2)).eval()
    ids = torch.randint(1024, (2, 80), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = growing_cache(model.config)
    rows = torch.arange(2)
    for start, end in [(0, 6), *((i, i + 1) for i in range(6, 80))]:
        if start == 40:
            rows = torch.tensor([1])
            cache.reorder_cache(rows)
        out = model(
            input_ids=ids[rows, start:end],
            attention_mask=mask[rows, :end],
            position_ids=position[rows, start:end],
            past_key_values=cache,
            use_cache=True,
        )
    whole = model(input_ids=ids[1:, 3:], use_cache=False).logits[:, -1]
    assert torch.allclose(out.logits[:, -1], whole, atol=1e-5)
