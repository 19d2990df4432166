"""TRL's GRPO step on the CPU with its own head and with this one: time, memory beyond the model.

    pytest benchmarks/bench_trl.py --benchmark-only -s

2,048 completion tokens, vocabulary 151,936, bf16; see `trl_step`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.result_table import Table
from benchmarks.trl_step import FUSED, LIGER, OURS, THEIRS, measure

TOKENS, ROUNDS = 2_048, 2
LEAST_SPEEDUP, MOST_MEMORY = 3.0, 0.4
# bf16: TRL rounds its logits, so a ratio at the edge may clip on one side only
MOST_DIFFERENCE = 0.05

pytestmark = [
    pytest.mark.timeout(900),
    # what peers import warns of its own deprecations
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """Printed and kept when both settings are done."""
    columns = ("use_liger_kernel", "step", "median ms", "TRL's ms / this")
    columns += ("MiB beyond model and gradients", "of TRL's", "loss", "gradient difference")
    title = (
        "TRL 1.16 `_compute_loss` + backward: 1 row of 2,048 tokens, V 151,936, D 128, bf16, CPU"
    )
    found = Table("trl_step", title, columns, num_keys=2)
    yield found
    found.finish()


@pytest.mark.parametrize("use_liger_kernel", [False, True], ids=["liger_off", "liger_on"])
def test_trl_step(benchmark: Any, table: Table, use_liger_kernel: bool) -> None:
    pytest.importorskip("trl")
    from tests.adapters.trl_rig import gradient_difference

    entries = benchmark.pedantic(
        measure,
        kwargs={"use_liger_kernel": use_liger_kernel, "tokens": TOKENS, "rounds": ROUNDS},
        rounds=1,
    )
    theirs = entries[THEIRS]
    for name, entry in entries.items():
        share = None if entry.peak_mib is None else entry.peak_mib / theirs.peak_mib
        difference = gradient_difference(entry.gradients, theirs.gradients)
        table.add(
            "on" if use_liger_kernel else "off",
            name,
            round(entry.median_ms),
            f"{theirs.median_ms / entry.median_ms:.1f}x",
            "not measured" if entry.peak_mib is None else round(entry.peak_mib),
            "not measured" if share is None else f"{share:.0%}",
            f"{entry.loss:.5f}",
            f"{difference:.1e}",
        )
        benchmark.extra_info[name] = {"ms": entry.samples_ms, "peak_mib": entry.peak_mib}
        if name in (OURS, FUSED):
            assert entry.loss == pytest.approx(theirs.loss, rel=1e-2)
            assert difference <= MOST_DIFFERENCE
            assert theirs.median_ms >= LEAST_SPEEDUP * entry.median_ms
            assert share is None or share <= MOST_MEMORY
    assert (LIGER in entries) == use_liger_kernel
