"""Run under torchrun: the step of `tests.test_step` on all ranks, against the same on one.

Prints a line of JSON a case: the largest gradient difference relative to the whole gradient, and
what else must agree.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist

from polaris_fast.config import Config
from polaris_fast.engine import UpdateResult
from polaris_fast.leaving import leave
from polaris_fast.ranks import World, join_world
from polaris_fast.ranks.conductor import Conductor
from polaris_fast.ranks.follower import follow
from polaris_fast.ranks.parts import Orders, Parts
from polaris_fast.slots import SlotTrainer
from tests.test_step import CASES, FixedRollouts, Recording, make_engine, run_step, step_config

OVERRIDES: dict[str, dict[str, str]] = {
    "as configured": {},
    "one slot holds everything": {"packing__max_tokens_per_microbatch": "100000"},
    "a row a slot": {"packing__max_tokens_per_microbatch": "170"},
}


class Summed(Recording):
    """Adds gradients over ranks as `ReplicatedEngine` does, keeps them, and does not update."""

    def update(self, grad_scale: float) -> UpdateResult:
        for parameter in self.model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
        return super().update(grad_scale)


def build(orders: Orders, world: World) -> Parts:
    engine = make_engine(orders.config, Summed)
    slots = SlotTrainer(engine, orders.config)
    return Parts(engine.model, engine, slots, FixedRollouts())


def main() -> int:
    with join_world() as world:
        if not world.is_conductor:
            return follow(world, build)
        with Conductor(world) as conductor:
            orders = Orders(step_config(), "", None, None, 10)
            conductor.send_orders(orders)
            parts = build(orders, world)
            slots, rollouts = conductor.share(parts)
            for name, score in CASES.items():
                for setting, overrides in OVERRIDES.items():
                    config = step_config(**overrides)
                    result = run_step(score, config, slots, rollouts=rollouts)
                    print(json.dumps(_compare(name, setting, score, config, result, parts)))
    return 0


def _compare(
    name: str, setting: str, score: Any, config: Config, result: Any, parts: Parts
) -> dict[str, Any]:
    alone = make_engine(config)
    expected = run_step(score, config, SlotTrainer(alone, config))
    assert isinstance(parts.engine, Recording)
    whole = torch.cat([g.flatten() for g in alone.grads.values()]).norm()
    worst = max(
        float((parts.engine.grads[n] - g).norm() / (g.norm() + 1e-3 * whole))
        for n, g in alone.grads.items()
    )
    return {
        "case": f"{name}, {setting}",
        "difference": worst,
        "same_rows": [r.completion_ids for r in result.rows]
        == [r.completion_ids for r in expected.rows],
        "same_tokens": result.train_tokens == expected.train_tokens,
        "loss": [float(result.loss_sums["sum_loss"]), float(expected.loss_sums["sum_loss"])],
    }


if __name__ == "__main__":
    leave(main())
