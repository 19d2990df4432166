"""Run under torchrun: one update of each ZeRO stage on all ranks, against one process's.

Prints a line of JSON a case: late drops, updates that the guard refuses, abandoned steps. Adam's
first moment after one update is (1 - beta1) times the clipped gradient, so it shows the gradient
that DeepSpeed used.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

import torch

from polaris_fast.config import Config, LoraConfig
from polaris_fast.engine import SingleEngine, UpdateResult
from polaris_fast.engine.deepspeed import DeepSpeedEngine
from polaris_fast.leaving import leave
from polaris_fast.model.load import prepare_model
from polaris_fast.model.lora import Adapters
from polaris_fast.model.tiny import tiny_model
from polaris_fast.ranks import World, join_world
from polaris_fast.ranks.conductor import Conductor
from polaris_fast.ranks.follower import follow
from polaris_fast.ranks.parts import Orders, Parts
from polaris_fast.slots import Slots, SlotTrainer
from tests.test_step import CASES, FixedRollouts, run_step, step_config

KINDS = [(family, stage) for family in ("qwen3_5", "qwen3", "lora") for stage in (1, 2, 3)]
ALL, LATE_DROP = CASES["all scored"], CASES["a group has too few scored rows"]
# The late drop's norm is about 1.3 times the whole step's: refused by this guard.
STRICT_GUARD = {"guard__window": "4", "guard__max_grad_norm_ratio": "1.15"}


class Recorded(DeepSpeedEngine):
    """Keeps whole first moments and weights after each update; all ranks gather them."""

    found: ClassVar[dict[str, Any]] = {}

    def update(self, grad_scale: float) -> UpdateResult:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        result = super().update(grad_scale)
        self.found = {
            name: (safe_get_full_optimizer_state(p, "exp_avg"), safe_get_full_fp32_param(p))
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }
        return result


def _engine(kind: Any, config: Config) -> Any:
    family = "qwen3" if config.run_name == "qwen3" else "qwen3_5"
    # a tied head under ZeRO is gathered twice in one forward
    model = prepare_model(
        tiny_model(family, vocab_size=300, seed=1, tie_word_embeddings=family == "qwen3")
    )
    adapters = None
    if config.run_name == "lora":
        torch.manual_seed(5)
        adapters = Adapters(model, LoraConfig(r=4, alpha=8.0))
    spec = config.loss_spec()
    return kind(model, config, spec, total_updates=10, adapters=adapters)


def build(orders: Orders, world: World) -> Parts:
    engine = _engine(Recorded, orders.config)
    return Parts(engine.model, engine, SlotTrainer(engine, orders.config), FixedRollouts())


def main() -> int:
    with join_world() as world:
        for family, stage in KINDS:
            config = step_config(
                run_name=family,
                engine__kind="deepspeed",
                engine__zero_stage=str(stage),
                **(STRICT_GUARD if family == "qwen3_5" else {}),
            )
            if not world.is_conductor:
                follow(world, build)
                continue
            with Conductor(world) as conductor:
                orders = Orders(config, "", None, None, 10)
                conductor.send_orders(orders)
                parts = build(orders, world)
                slots, rollouts = conductor.share(parts)
                name = f"{family} zero-{stage}"
                both = (slots, rollouts, parts, _engine(SingleEngine, config), config)
                if family != "qwen3_5":
                    print(_update(f"{name}: late drop", LATE_DROP, *both))
                    print(_update(f"{name}: second update", ALL, *both))
                    continue
                print(_update(f"{name}: first update", ALL, *both))
                print(_update(f"{name}: refused", LATE_DROP, *both))
                _abandon(slots, rollouts, config)
                print(_update(f"{name}: after an abandoned step", ALL, *both))
    return 0


def _update(
    name: str, score: Any, slots: Slots, rollouts: Any, parts: Parts, alone: Any, config: Config
) -> str:
    """One step on the ranks and one alone; a line of JSON that compares them."""
    assert isinstance(parts.engine, Recorded)
    before = parts.engine.found
    result = run_step(score, config, slots, rollouts=rollouts)
    expected = run_step(score, config, SlotTrainer(alone, config))
    now = parts.engine.found
    moved = max((float((now[n][1] - w).abs().max()) for n, (_, w) in before.items()), default=0.0)
    mine, other = result.updates[0], expected.updates[0]
    line = {
        "case": name,
        "norm": [mine.grad_norm, other.grad_norm],
        "skipped": [mine.skipped, other.skipped],
        "moments": _largest_moment_gap(parts.engine, alone),
        "moved": moved,
    }
    return json.dumps(line)


def _abandon(slots: Slots, rollouts: Any, config: Config) -> None:
    """Forward and backward of one round, then the step is given up."""

    class GivenUp(Exception):
        pass

    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise GivenUp

    try:
        run_step(ALL, config, slots, rollouts=rollouts, check_stop=stop)
    except GivenUp:
        return
    raise AssertionError("the step had one round only: it was not given up")


def _largest_moment_gap(engine: Recorded, alone: SingleEngine) -> float:
    """Of all parameters, relative to the parameter's own and a share of the whole."""
    names = [name for name, p in alone.model.named_parameters() if p.requires_grad]
    moments = {
        name: alone.optimizer.state[master]["exp_avg"]
        for name, master in zip(names, alone.weights.masters, strict=True)
    }
    whole = torch.cat([m.flatten() for m in moments.values()]).norm()
    return max(
        float((engine.found[name][0] - m).norm() / (m.norm() + 1e-3 * whole))
        for name, m in moments.items()
    )


if __name__ == "__main__":
    leave(main())
