"""The packing benchmark's parts: the recipe's lengths, and the gate before the clock starts."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.bench_packing import check_gradients
from benchmarks.packing_passes import PackedPass, PaddedPass
from benchmarks.packing_rows import BUCKETS, ROWS_PER_PROMPT, recipe_rows
from polaris_fast.model.load import install_fused_head, prepare_model
from polaris_fast.model.tiny import Family, tiny_model


def test_lengths_are_the_recipe_s_scaled_down() -> None:
    rows = recipe_rows(24.0, 1024)
    assert len(rows) == ROWS_PER_PROMPT * sum(count for _, _, count in BUCKETS) == 48
    completions = [len(row.completion_ids) for row in rows]
    assert max(completions) <= 12_000 * 1.35 / 24 and min(completions) >= 1_000 * 1.35 / 24 * 0.7
    long = sum(n > 4_000 * 1.35 / 24 for n in completions) / len(completions)
    assert 0.4 <= long <= 0.6  # the paper's 90 of 180 prompts are longer than 4,000 words
    assert recipe_rows(24.0, 1024) == rows


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5"])
def test_every_way_has_the_same_loss_and_gradients(family: Family) -> None:
    rows = recipe_rows(200.0, 1024)[:7]
    ours: Any = prepare_model(tiny_model(family)).train()
    theirs: Any = install_fused_head(tiny_model(family)).train()
    ways = [
        PaddedPass(theirs, rows, 3),
        PaddedPass(theirs, rows, 3, with_mask=False),
        PaddedPass(theirs, rows, 2, to_longest=True, head="plain"),
    ]
    check_gradients(PackedPass(ours, rows, 200), ways)


def test_the_gate_sees_another_model() -> None:
    rows = recipe_rows(200.0, 1024)[:4]
    ours: Any = prepare_model(tiny_model("qwen3")).train()
    theirs: Any = install_fused_head(tiny_model("qwen3", seed=1)).train()
    with pytest.raises(AssertionError):
        check_gradients(PackedPass(ours, rows, 400), [PaddedPass(theirs, rows, 2)])
