"""One rank of the balance benchmark: its micro-batches of simulated steps, run and timed.

    torchrun --nproc-per-node 2 -m benchmarks.balance_ranks --recipe polaris_9b

Steps have the recipe's lengths, divided by a scale, and its micro-batch; a run's own planner makes
the rounds. Ranks start a round together and each times its forward, loss and backward; the round
lasts as long as its slowest, so the others wait. Printed by rank 0 is JSON: each rank's share of
waiting, and what the simulation of the same steps says.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from polaris_fast.config import Config
from polaris_fast.config_file import load_config
from polaris_fast.engine import SingleEngine
from polaris_fast.model.load import prepare_model
from polaris_fast.model.tiny import tiny_model
from polaris_fast.packing import RowCost, pack_rows
from polaris_fast.plan.balance import rounds_of_step, simulate
from polaris_fast.plan.lengths import draw_steps
from polaris_kernels import LossRows

SCALE = 16  # of all lengths: 12,000 words become 1,013 tokens
# as wide as leaves little time between operations
SIZES = {"hidden_size": 256, "num_layers": 4, "vocab_size": 2048, "intermediate_size": 1024}
REPEATS = 3  # of every round; the median counts


@dataclass(frozen=True)
class _Row:
    prompt_ids: list[int]
    completion_ids: list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    config = load_config(arguments.recipe, {})
    budget = config.packing.max_tokens_per_microbatch // SCALE
    steps = _scaled_steps(config, arguments.steps)
    engine = _engine()
    cost = RowCost.of_model(engine.model)
    ranks = dist.get_world_size()
    busy = []  # seconds of every rank in every round
    for groups in steps:
        for slots in rounds_of_step(groups, budget, ranks, cost):
            busy.append(_time_round(engine, slots, config.max_prompt_length // SCALE))
    if dist.get_rank() == 0:
        table = np.array(busy)
        span = table.max(axis=1).sum()
        found = {
            "rounds": len(busy),
            "idle_by_rank": (1 - table.sum(axis=0) / span).tolist(),
            "idle": float(1 - table.sum() / (ranks * span)),
            "simulated": simulate(steps, budget, ranks, cost).idle_share,
        }
        print(json.dumps(found))
    dist.destroy_process_group()


def _scaled_steps(config: Config, num_steps: int) -> list[list[list[int]]]:
    """Tokens, prompt included, of each row of each group of each step."""
    prompt = config.max_prompt_length
    steps = draw_steps(config, num_steps, seed=2)
    return [[[(prompt + n) // SCALE for n in group] for group in groups] for groups in steps]


def _engine() -> SingleEngine:
    config = Config(dtype="float32")
    model: Any = prepare_model(tiny_model("qwen3_5", **SIZES))
    return SingleEngine(model, config, config.loss_spec(), total_updates=1)


def _time_round(engine: SingleEngine, slots: list[list[int]], prompt: int) -> list[float]:
    """Median seconds of every rank; 0 for one without rows."""
    rank = dist.get_rank()
    seconds = [0.0]
    if rank < len(slots):
        rows = [_Row([1] * prompt, [2] * (n - prompt)) for n in slots[rank]]
        seconds = []
    for _ in range(REPEATS):
        dist.barrier()
        if rank < len(slots):
            seconds.append(_seconds(engine, rows))
    gathered: list[float] = [0.0] * dist.get_world_size()
    dist.all_gather_object(gathered, statistics.median(seconds))
    return gathered


def _seconds(engine: SingleEngine, rows: list[_Row]) -> float:
    start = time.perf_counter()
    batch = pack_rows(rows)
    loss_rows = LossRows(
        row_of_token=batch.target_row,
        num_rows=len(rows),
        advantages=torch.ones(len(rows)),
        is_human=torch.zeros(len(rows), dtype=torch.bool),
        denominator=float(batch.num_targets),
    )
    engine.backward(batch, loss_rows)
    elapsed = time.perf_counter() - start
    engine.discard_gradients()
    return elapsed


if __name__ == "__main__":
    main()
