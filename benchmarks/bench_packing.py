"""Packed rows against padded ones: tokens per second of forward and backward, same rows and loss.

    pytest benchmarks/bench_packing.py --benchmark-only -s

Padding goes through transformers' own forward, with the same fused head, in two ways: rows sorted
by length and padded to the longest of their micro-batch, and padded to the longest of all. Each at
the batch size (and with or without a mask) that was fastest here. Gradients must agree first.
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
BATCH_SIZES = (2, 4, 8)
# Qwen3.5 is the recipe's family; Qwen3 shows what is left where no layer's kernel differs.
MIN_RATIO = {"qwen3_5": (1.3, 1.8), "qwen3": (1.1, 1.8)}


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    columns = ("model", "way", "tokens/s", "seconds", "packed is faster by")
    found = Table("packing", "Forward and backward of one step's rows, fp32", columns, num_keys=2)
    yield found
    found.finish()


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3"])
def test_packed_against_padded(benchmark: Any, table: Table, family: Family) -> None:
    rows = recipe_rows(SCALE, SIZES["vocab_size"])
    packed, by_length, to_longest = _passes(family, rows)
    check_gradients(packed, [by_length[0], to_longest[0]])
    ways: dict[str, PackedPass | PaddedPass] = {
        "packed": packed,
        "sorted by length": _fastest(by_length),
        "to the longest": _fastest(to_longest),
    }
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
    sorted_gain, longest_gain = MIN_RATIO[family]
    assert seconds["sorted by length"] >= sorted_gain * seconds["packed"]
    assert seconds["to the longest"] >= longest_gain * seconds["packed"]


def _passes(
    family: Family, rows: list[WeightedRow]
) -> tuple[PackedPass, list[PaddedPass], list[PaddedPass]]:
    ours: Any = prepare_model(tiny_model(family, **SIZES)).train()
    theirs: Any = install_fused_head(tiny_model(family, **SIZES)).train()
    by_length = [
        PaddedPass(theirs, rows, size, with_mask=mask)
        for size in BATCH_SIZES
        for mask in (True, False)
    ]
    to_longest = [PaddedPass(theirs, rows, size, to_longest=True) for size in BATCH_SIZES]
    return PackedPass(ours, rows, TOKEN_BUDGET), by_length, to_longest


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
