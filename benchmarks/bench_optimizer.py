"""An update of AdamW with whole moments and with bitsandbytes' of 8 bits: time and bytes of state.

    pytest benchmarks/bench_optimizer.py --benchmark-only -s

The optimizers of `optim`, made as a run makes them, over the same fp32 masters in turns. Without
bitsandbytes (`pip install polaris-fast[8bit]`) its line is named as missing.
"""

from __future__ import annotations

import statistics
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.measure import Call, take_turns
from benchmarks.result_table import Table
from polaris_fast.config import Config
from polaris_fast.engine.optimizer import make_optimizer

SHAPES = [(4096, 1024)] * 4 + [(1024, 1024)] * 4 + [(1024,)] * 8  # 21 M, as layers have them


def test_update(benchmark: Any) -> None:
    ways = ["adamw_torch", *(["adamw_8bit"] if find_spec("bitsandbytes") else [])]
    if len(ways) == 1:
        print("\nadamw_8bit: not measured, bitsandbytes is not installed")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    optimizers = {way: _optimizer(way, device) for way in ways}
    calls = {way: Call(optimizer.step) for way, optimizer in optimizers.items()}
    for call in calls.values():
        call.once()  # makes the moments
    samples = benchmark.pedantic(take_turns, (calls, device), {"budget_s": 2.0}, rounds=1)
    title = f"One update of 21 M fp32 parameters on {device.type}"
    table = Table("optimizer", title, ("optim", "device", "ms", "state bytes a parameter"), 2)
    for way, times in samples.items():
        state = _state_bytes(optimizers[way])
        table.add(way, device.type, round(statistics.median(times), 1), round(state, 2))
    table.finish()
    if len(ways) == 2:
        whole, rounded = (_state_bytes(optimizers[way]) for way in ways)
        assert whole == pytest.approx(8.0, rel=0.01) and rounded < 2.2


def _optimizer(way: str, device: torch.device) -> torch.optim.Optimizer:
    generator = torch.Generator().manual_seed(0)
    masters = []
    for shape in SHAPES:
        master = nn.Parameter(torch.randn(shape, generator=generator).to(device))
        master.grad = torch.randn(shape, generator=generator).to(device)
        masters.append(master)
    return make_optimizer(masters, Config.model_validate({"optim": way}))


def _state_bytes(optimizer: torch.optim.Optimizer) -> float:
    """Of the moments and their scales, a parameter."""
    masters = [p for group in optimizer.param_groups for p in group["params"]]
    # a few tables of 256 values are shared by all parameters
    tensors = {
        tensor.data_ptr(): tensor.numel() * tensor.element_size()
        for master in masters
        for tensor in optimizer.state[master].values()
        if isinstance(tensor, torch.Tensor)
    }
    return sum(tensors.values()) / sum(master.numel() for master in masters)
