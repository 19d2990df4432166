"""Packed rows against padded ones: tokens per second of forward and backward, same rows and loss.

    pytest benchmarks/bench_packing.py --benchmark-only -s

Padding goes through transformers' own forward. With our fused head, so that packing alone counts:
rows sorted by length and padded to the longest of their micro-batch, and padded to the longest of
all. And as trainers that sort by length do it: with a mask, and logits of all completion tokens.
Each at the batch size (the first with or without a mask) that was fastest here. Gradients must
agree first.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.measure import Call, take_turns
from benchmarks.packing_passes import PackedPass, PaddedPass
from benchmarks.packing_rows import WeightedRow, recipe_rows
from benchmarks.result_table import Table
from polaris_fast.model.load import install_fused_head, prepare_model
from polaris_fast.model.tiny import Family, tiny_model

SCALE = 24.0  # of all lengths: 12,000 words become 675 tokens
# Widths of a tiny model; the vocabulary leaves the head about the share it has in a 9B model.
SIZES: dict[str, Any] = {"hidden_size": 128, "num_layers": 4, "vocab_size": 1024}
TOKEN_BUDGET = 8192
BATCH_SIZES = (2, 4, 8, 16)
SORTED, PRACTICE, LONGEST = "sorted by length", "sorted, as trainers do it", "to the longest"
# Qwen3.5 is the recipe's family. In Qwen3 no layer's kernel differs, and sorted batches of 8 rows
# pad 14 % here: packing can gain no more than that, the logits of the plain head come on top.
MIN_RATIO = {
    "qwen3_5": {SORTED: 1.3, PRACTICE: 1.3, LONGEST: 1.8},
    "qwen3": {SORTED: 1.05, PRACTICE: 1.15, LONGEST: 1.8},
}


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    columns = ("model", "way", "tokens/s", "seconds", "packed is faster by")
    found = Table("packing", "Forward and backward of one step's rows, fp32", columns, num_keys=2)
    yield found
    found.finish()


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3"])
def test_packed_against_padded(benchmark: Any, table: Table, family: Family) -> None:
    rows = recipe_rows(SCALE, SIZES["vocab_size"])
    packed, padded = _passes(family, rows)
    check_gradients(packed, [passes[0] for passes in padded.values()])
    ways: dict[str, PackedPass | PaddedPass] = {"packed": packed}
    ways |= {name: _fastest(passes) for name, passes in padded.items()}
    calls = {name: Call(way.run) for name, way in ways.items()}
    samples = benchmark.pedantic(
        take_turns, (calls, torch.device("cpu")), {"budget_s": 20.0, "max_rounds": 5}, rounds=1
    )
    seconds = {name: statistics.median(times) / 1e3 for name, times in samples.items()}
    tokens = sum(row.num_tokens for row in rows)
    for name, way in ways.items():
        ratio = seconds[name] / seconds["packed"]
        rate = f"{tokens / seconds[name]:,.0f}"
        said = f"{name}: {way.name}" if name != "packed" else way.name
        table.add(family, said, rate, round(seconds[name], 3), f"{ratio:.2f}x")
        benchmark.extra_info[name] = {"tokens_per_s": tokens / seconds[name], "way": way.name}
    for name, gain in MIN_RATIO[family].items():
        assert seconds[name] >= gain * seconds["packed"], name


def _passes(
    family: Family, rows: list[WeightedRow]
) -> tuple[PackedPass, dict[str, list[PaddedPass]]]:
    ours: Any = prepare_model(tiny_model(family, **SIZES)).train()
    fused: Any = install_fused_head(tiny_model(family, **SIZES)).train()
    plain: Any = tiny_model(family, **SIZES).train()
    return PackedPass(ours, rows, TOKEN_BUDGET), {
        SORTED: [
            PaddedPass(fused, rows, size, with_mask=mask)
            for size in BATCH_SIZES
            for mask in (True, False)
        ],
        PRACTICE: [PaddedPass(plain, rows, size, head="plain") for size in BATCH_SIZES],
        LONGEST: [PaddedPass(fused, rows, size, to_longest=True) for size in BATCH_SIZES],
    }


def _fastest(passes: list[PaddedPass]) -> PaddedPass:
    """By one run of each; they have all been warmed up by those before."""
    calls = {way.name: Call(way.run) for way in passes}
    for way in passes[:1]:
        way.run()
    samples = take_turns(calls, torch.device("cpu"), budget_s=0.0, min_rounds=1, max_rounds=1)
    return min(passes, key=lambda way: samples[way.name][0])


def check_gradients(packed: PackedPass, others: list[PaddedPass]) -> None:
    """AssertionError when a padded way differs from the packed one in loss or gradients."""
    loss = packed.run()
    ours = {name: p.grad.clone() for name, p in packed.model.named_parameters()}
    whole = torch.stack([grad.norm() for grad in ours.values()]).norm()
    for other in others:
        assert other.run() == pytest.approx(loss, rel=1e-5)
        for name, parameter in other.model.named_parameters():
            assert parameter.grad is not None
            error = (parameter.grad - ours[name]).norm()
            # gates' biases have gradients of rounding's own size
            bound = 1e-4 * ours[name].norm() + 1e-6 * whole
            assert error < bound, (other.name, name, float(error), float(bound))
