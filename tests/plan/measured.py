"""Peaks of real runs on the CPU, from torch's own allocator events, not from the planner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from polaris_fast.config import Config
from polaris_fast.engine import SingleEngine
from polaris_fast.model.load import prepare_model
from polaris_fast.model.lora import Adapters
from polaris_fast.model.memory import install_memory_savers
from polaris_fast.model.tiny import tiny_model
from polaris_fast.packing import pack_rows
from polaris_kernels import LossRows
from polaris_kernels.backends.workspace import release_workspace


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes alive at a time of what `work` allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        work()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def train_two_steps(
    family: Any, config: Config, sizes: dict[str, Any], rows: Sequence[tuple[int, int]]
) -> None:
    """Two updates of two equal micro-batches each, from the model's birth on."""
    release_workspace()
    model: Any = prepare_model(tiny_model(family, dtype=getattr(torch, config.dtype), **sizes))
    adapters = Adapters(model, config.lora) if config.lora.r else None
    install_memory_savers(model, config)
    spec = config.loss_spec()
    engine = SingleEngine(model, config, spec, total_updates=2, adapters=adapters)
    texts = [SimpleNamespace(prompt_ids=[1] * p, completion_ids=[2] * c) for p, c in rows]
    for _ in range(2):
        for _ in range(2):
            batch = pack_rows(texts)
            engine.backward(
                batch,
                LossRows(
                    row_of_token=batch.target_row,
                    num_rows=len(rows),
                    advantages=torch.ones(len(rows)),
                    is_human=torch.zeros(len(rows), dtype=torch.bool),
                    denominator=100.0,
                ),
            )
        engine.update(1.0)
    release_workspace()
