"""One long row, tiny model with Qwen3.5's vocabulary, bf16: peak memory and time of every switch.

    pytest benchmarks/bench_long_row.py --benchmark-only -s

Memory is of one row of 16,384 tokens, each way in a process of its own (`long_row`). Whole logits
of such a row do not fit a small machine: their peak is measured at shorter rows, where it grows by
the same for every token, and drawn out to 16,384. Time is of a shorter row, ours in turns (TRL's is
in `bench_trl`). A way that is not run keeps its line of an earlier run.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.long_row import SWITCHES, TRL, WHOLE, make_step, measured
from benchmarks.measure import Call, take_turns
from benchmarks.result_table import RESULTS, Table

TOKENS, TIMED_TOKENS = 16_384, 4_096
SHORTER = (512, 1024, 2048)  # tokens of a row of whole logits
MOST = {TRL[0]: 0.25, WHOLE: 0.05}  # of their memory

Found = dict[str, tuple[float, float | None]]  # way -> MiB, norm of the gradients


@pytest.fixture(scope="module")
def found() -> Iterator[Found]:
    """Filled by the tests; written with everybody's share of TRL's and of whole logits' memory."""
    mine: Found = {}
    yield mine
    result = _recorded() | mine
    columns = ("way", "peak MiB", *(f"of {other}" for other in MOST), "gradient norm")
    title = f"Peak beyond model and gradients, one row of {TOKENS:,} tokens"
    table = Table("long_row", title, columns)
    for way in (*SWITCHES, *TRL, WHOLE):
        if way in result:
            peak, norm = result[way]
            shares = (f"{peak / result[o][0]:.1%}" if o in result else "" for o in MOST)
            table.add(way, peak, *shares, norm)
    table.finish()


def _recorded() -> Found:
    path = RESULTS / "long_row.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    return {row["way"]: (row["peak MiB"], row["gradient norm"]) for row in rows}


@pytest.mark.parametrize("way", [*SWITCHES, *TRL])
def test_memory(benchmark: Any, found: Found, way: str) -> None:
    run = benchmark.pedantic(measured, (way, TOKENS), rounds=1)
    found[way] = (run["peak_mib"], run["grad_norm"])


def test_memory_of_whole_logits_and_the_shares(benchmark: Any, found: Found) -> None:
    runs = benchmark.pedantic(lambda: [measured(WHOLE, n) for n in SHORTER], rounds=1)
    peaks = [run["peak_mib"] for run in runs]
    slope, base = np.polyfit(SHORTER, peaks, 1)
    for tokens, peak in zip(SHORTER, peaks, strict=True):
        assert abs(base + slope * tokens - peak) <= 0.03 * peak, (peaks, base, slope)
    found[WHOLE] = (round(float(base + slope * TOKENS), 1), None)  # other rows, other gradients
    result = _recorded() | found
    norms = [norm for _, norm in result.values() if norm is not None]
    assert max(norms) <= 1.01 * min(norms)
    for other, share in MOST.items():
        if {"ours", other} <= result.keys():
            assert result["ours"][0] <= share * result[other][0], other


def test_time(benchmark: Any) -> None:
    calls = {way: Call(make_step(way, TIMED_TOKENS)[1]) for way in SWITCHES}
    for call in calls.values():
        call.once()
    samples = benchmark.pedantic(
        take_turns, (calls, torch.device("cpu")), {"budget_s": 1.0}, rounds=1
    )
    title = f"Forward, loss and backward of one row of {TIMED_TOKENS:,} tokens"
    table = Table("long_row_time", title, ("way", "seconds", "of ours without switches"))
    seconds = {way: statistics.median(times) / 1e3 for way, times in samples.items()}
    for way, median in seconds.items():
        table.add(way, round(median, 2), f"{median / seconds['ours']:.2f}x")
    table.finish()
