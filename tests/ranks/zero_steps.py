"""Run under torchrun: one update of each ZeRO stage on all ranks, against one process's.

Prints a line of JSON a case: late drops, updates that the guard refuses, abandoned steps, gradients
that are no numbers, two updates a batch. Adam's first moment after one update is (1 - beta1) times
the clipped gradient, so it shows the gradient that DeepSpeed used.

bfloat16 and CPU memory for the optimizer are cases of their own: DeepSpeed sums, checks and clears
gradients elsewhere for them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from polaris_fast.config import Config, LoraConfig
from polaris_fast.engine import SingleEngine, UpdateResult
from polaris_fast.engine.deepspeed import DeepSpeedEngine
from polaris_fast.leaving import leave
from polaris_fast.model.load import prepare_model
from polaris_fast.model.lora import Adapters
from polaris_fast.model.tiny import tiny_model
from polaris_fast.packing import PackedBatch
from polaris_fast.ranks import World, join_world
from polaris_fast.ranks.conductor import Conductor
from polaris_fast.ranks.follower import follow
from polaris_fast.ranks.parts import Orders, Parts
from polaris_fast.ranks.rollouts import SharedRollouts
from polaris_fast.ranks.slots import SharedSlots
from polaris_fast.rollout import Completion
from polaris_fast.slots import SlotTrainer
from polaris_fast.types import FinishReason, Row
from polaris_kernels import GRPOLossOutput, LossRows
from tests.test_step import CASES, FixedRollouts, run_step, step_config


@dataclass(frozen=True)
class Kind:
    """What a group of cases runs on."""

    family: str
    stage: int
    dtype: str = "float32"
    offload: bool = False  # the optimizer in CPU memory
    iterations: int = 1  # updates a batch

    @property
    def maths(self) -> tuple[str, str, int]:
        """Kinds of the same maths have one reference."""
        return self.family, self.dtype, self.iterations

    @property
    def name(self) -> str:
        words = [self.family, f"zero-{self.stage}", self.dtype]
        return " ".join(words + ["offload"] * self.offload)


KINDS = [
    *(Kind("qwen3_5", stage) for stage in (1, 2, 3)),
    *(Kind("qwen3", stage) for stage in (2, 3)),
    *(Kind("lora", stage) for stage in (1, 3)),
    *(Kind("qwen3_5", stage, iterations=2) for stage in (2, 3)),
    *(Kind("qwen3_5", stage, "bfloat16", offload) for stage in (2, 3) for offload in (False, True)),
    Kind("lora", 2, "bfloat16", offload=True),
    Kind("lora", 3, "bfloat16"),
]
ALL, LATE_DROP = CASES["all scored"], CASES["a group has too few scored rows"]
# The late drop's norm is about 1.3 times the whole step's: refused by this guard.
STRICT_GUARD = {"guard__window": "4", "guard__max_grad_norm_ratio": "1.15"}
# A row a micro-batch, five of them: of two ranks one is idle in the last round.
ODD_ROWS = {
    "prompts_per_step": "1",
    "hri__mode": "off",
    "packing__max_tokens_per_microbatch": "170",
}
POISONED = 3  # number of the update, from 0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Recorded(DeepSpeedEngine):
    """Keeps whole first moments and weights after each update; all ranks gather them.

    Gradients of update number `POISONED` are nan on one rank.
    """

    found: ClassVar[dict[str, Any]] = {}
    num_updates = 0

    def backward(self, batch: PackedBatch, rows: LossRows) -> GRPOLossOutput:
        if self.num_updates == POISONED and dist.get_rank() == 1:
            rows = replace(rows, advantages=rows.advantages * float("nan"))
        return super().backward(batch, rows)

    def update(self, grad_scale: float) -> UpdateResult:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        result = super().update(grad_scale)
        self.num_updates += 1
        self.found = {
            name: (safe_get_full_optimizer_state(p, "exp_avg"), safe_get_full_fp32_param(p))
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }
        return result


class LongRollouts(FixedRollouts):
    """Two rows are too long for a micro-batch of `ODD_ROWS`."""

    def generate(self, requests: Any, params: Any, on_finish: Any, on_token: Any = None) -> None:
        for index, request in enumerate(requests):
            rng = random.Random(request.seed)
            ids = [rng.randrange(5, 290) for _ in range(60)]
            logps = [0.0] * len(ids)
            on_finish(index, Completion(ids, logps, logps, FinishReason.LENGTH))


class CountedSlots(SharedSlots):
    """Counts the ranks that had no slot in a round."""

    num_idle = 0

    def first_pass(self, slots: Sequence[Sequence[Row]], denominator: float) -> None:
        self.num_idle += self.num_ranks - len(slots)
        super().first_pass(slots, denominator)


def _config(kind: Kind) -> Config:
    return step_config(
        run_name=kind.family,
        dtype=kind.dtype,
        num_iterations=str(kind.iterations),
        **(ODD_ROWS if kind.iterations > 1 else {}),
        engine__kind="deepspeed",
        engine__zero_stage=str(kind.stage),
        engine__offload_optimizer=str(kind.offload).lower(),
        **(STRICT_GUARD if kind.family == "qwen3_5" else {}),
    )


def _engine(kind: Any, config: Config) -> Any:
    family = "qwen3" if config.run_name == "qwen3" else "qwen3_5"
    # a tied head under ZeRO is gathered twice in one forward
    model = prepare_model(
        tiny_model(
            family,
            vocab_size=300,
            seed=1,
            dtype=DTYPES[config.dtype],
            tie_word_embeddings=family == "qwen3",
        )
    )
    adapters = None
    if config.run_name == "lora":
        torch.manual_seed(5)
        adapters = Adapters(model, LoraConfig(r=4, alpha=8.0))
    spec = config.loss_spec()
    return kind(model, config, spec, total_updates=10, adapters=adapters)


def build(orders: Orders, world: World) -> Parts:
    engine = _engine(Recorded, orders.config)
    rollouts = LongRollouts() if orders.config.num_iterations > 1 else FixedRollouts()
    return Parts(engine.model, engine, SlotTrainer(engine, orders.config), rollouts)


def main() -> int:
    alone: dict[Any, Alone] = {}
    with join_world() as world:
        for kind in KINDS:
            if not world.is_conductor:
                follow(world, build)
                continue
            config = _config(kind)
            with Conductor(world) as conductor:
                conductor.send_orders(Orders(config, "", None, None, 10))
                parts = build(Orders(config, "", None, None, 10), world)
                shared, rollouts = conductor.share(parts)
                assert isinstance(shared, SharedSlots) and isinstance(rollouts, SharedRollouts)
                slots = CountedSlots(shared.local, shared.channel)
                assert isinstance(parts.engine, Recorded)
                if kind.maths not in alone:
                    alone[kind.maths] = Alone(config, rollouts.local)
                pair = Pair(kind, config, slots, rollouts, parts.engine, alone[kind.maths])
                pair.run_cases()
    return 0


class Alone:
    """One process that takes the same steps; each is made once."""

    def __init__(self, config: Config, rollouts: Any) -> None:
        here = config.engine.model_copy(update={"offload_optimizer": False})
        self.engine: SingleEngine = _engine(
            SingleEngine, config.model_copy(update={"engine": here})
        )
        self.config, self.rollouts = config, rollouts
        self.found: dict[str, tuple[list[UpdateResult], dict[str, Tensor]]] = {}

    def step(self, case: str, score: Any) -> tuple[list[UpdateResult], dict[str, Tensor]]:
        """The step's updates, and Adam's first moments after it."""
        if case not in self.found:
            slots = SlotTrainer(self.engine, self.config)
            result = run_step(score, self.config, slots, rollouts=self.rollouts)
            names = [n for n, p in self.engine.model.named_parameters() if p.requires_grad]
            moments = {
                name: self.engine.optimizer.state[master]["exp_avg"].clone()
                for name, master in zip(names, self.engine.weights.masters, strict=True)
            }
            self.found[case] = result.updates, moments
        return self.found[case]

    def leave_out(self, case: str) -> None:
        """The schedule goes on without an update."""
        if case not in self.found:
            self.engine.skip_updates(1)
            self.found[case] = [], {}


@dataclass
class Pair:
    """The ranks, and one process that takes the same steps."""

    kind: Kind
    config: Config
    slots: CountedSlots
    rollouts: SharedRollouts
    engine: Recorded
    alone: Alone

    def run_cases(self) -> None:
        if self.kind.iterations > 1:
            self._compare("two updates a batch", ALL)
        elif self.kind.family != "qwen3_5":
            self._compare("late drop", LATE_DROP)
            self._compare("second update", ALL)
        else:
            self._compare("first update", ALL)
            self._compare("refused", LATE_DROP)
            self._abandon()
            self._compare("after an abandoned step", ALL)
            self._not_finite()
            self._compare("after no numbers", ALL)

    def _compare(self, case: str, score: Any) -> None:
        """One step on the ranks and one alone; prints a line of JSON that compares them."""
        before = self.engine.found
        idle = self.slots.num_idle
        result = run_step(score, self.config, self.slots, rollouts=self.rollouts)
        expected, moments = self.alone.step(case, score)
        largest, whole = self._gaps(moments)
        updates = list(zip(result.updates, expected, strict=True))
        self._print(
            case,
            before,
            norms=[[mine.grad_norm, other.grad_norm] for mine, other in updates],
            skipped=[[mine.skipped, other.skipped] for mine, other in updates],
            moments=largest,
            whole=whole,
            idle=self.slots.num_idle - idle,
        )

    def _not_finite(self) -> None:
        """A step on the ranks whose gradients are nan; the other process leaves it out."""
        before = self.engine.found
        result = run_step(ALL, self.config, self.slots, rollouts=self.rollouts)
        self.alone.leave_out("no numbers")
        update = result.updates[0]
        self._print("no numbers", before, norm=update.grad_norm, skipped=update.skipped)

    def _abandon(self) -> None:
        """Forward and backward of one round, then the step is given up."""

        class GivenUp(Exception):
            pass

        calls: list[int] = []

        def stop() -> None:
            calls.append(1)
            if len(calls) > 1:
                raise GivenUp

        with suppress(GivenUp):
            run_step(ALL, self.config, self.slots, rollouts=self.rollouts, check_stop=stop)
            raise AssertionError("the step had one round only: it was not given up")

    def _print(self, case: str, before: dict[str, Any], **found: Any) -> None:
        now = self.engine.found
        gaps = [float((now[name][1] - weight).abs().max()) for name, (_, weight) in before.items()]
        line = {"case": f"{self.kind.name}: {case}", "moved": max(gaps, default=0.0)}
        print(json.dumps(line | found))

    def _gaps(self, moments: dict[str, Tensor]) -> tuple[float, float]:
        """The largest of a parameter, relative to it and a share of all; that of all together."""
        gaps = {name: (self.engine.found[name][0] - m).norm() for name, m in moments.items()}
        whole = torch.stack([m.norm() for m in moments.values()]).norm()
        largest = max(float(gaps[name] / (m.norm() + 1e-3 * whole)) for name, m in moments.items())
        return largest, float(torch.stack(list(gaps.values())).norm() / whole)


if __name__ == "__main__":
    leave(main())
