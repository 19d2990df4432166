"""Seconds of a step by phase, from FLOPs and bytes over stated shares of the machine's rates.

Nothing here was measured on a GPU: it is a bound with assumed efficiencies, see `Assumptions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import Config
from ..packing import RowCost
from .assumptions import Assumptions
from .balance import Balance, Groups, simulate
from .generation import cache_bytes_per_token, state_bytes_per_row
from .hardware import Machine
from .lengths import story_tokens
from .sample import Trained
from .servers import Servers
from .shapes import ModelShape

_FLA_CHUNK = 64
# AdamW, per parameter: gradient, master and two moments read, the last three and a half weight
# written, and the norm's own read.
_SUM_BYTES = 2 + 2 * 4  # a 16-bit gradient read, its fp32 sum read and written
_OPTIMIZER_BYTES = 4 * 4 + 3 * 4 + 2 + 4


@dataclass(frozen=True)
class StepTime:
    """Seconds of each phase; judging counts only where nothing else runs."""

    phases: tuple[tuple[str, float], ...]
    balance: Balance
    rollout_tokens: float  # of a step, thinking included
    story_tokens: float  # of a step: what the judge reads of them
    train_tokens: float

    @property
    def total(self) -> float:
        """Seconds of one step."""
        return sum(seconds for _, seconds in self.phases)


def step_time(
    config: Config,
    shape: ModelShape,
    machine: Machine,
    steps: Sequence[Groups],
    assumed: Assumptions,
    *,
    trained: Trained,
    servers: Servers | None = None,
) -> StepTime:
    """Predict a step.

    Args:
        machine: the ranks' part, see `servers.training_part`.
        steps: completion tokens of each row of each group of simulated steps.
        trained: parameters that the optimizer sees.
        servers: what writes the stories; None: the ranks do.
    """
    prompt = config.max_prompt_length
    rows = [[[prompt + n for n in group] for group in groups] for groups in steps]
    cost = row_cost(shape)
    budget = config.packing.max_tokens_per_microbatch
    balance = simulate(rows, budget, machine.count, cost)
    tokens = float(np.mean([sum(n for group in groups for n in group) for groups in steps]))
    train = _training_seconds(config, shape, machine, balance, tokens, assumed)
    generation = float(
        np.mean([_generation_seconds(config, shape, machine, s, assumed, servers) for s in steps])
    )
    updates = config.num_iterations
    optimizer = updates * _optimizer_seconds(config, trained, machine, balance, assumed)
    sync = updates * _sync_seconds(config, shape, trained, machine, balance, assumed)
    # Judging runs beside generation; the last group's answer comes one latency after its last row,
    # while the other groups train.
    others = 1 - 1 / config.prompts_per_step
    is_local = config.reward.function is not None or config.judge.base_url is None
    judge = 0.0 if is_local else max(0.0, assumed.judge_latency_s - train * others)
    phases = (
        ("generation", generation),
        ("judge (not hidden)", judge),
        ("forward and backward", train * updates),
        ("communication (not hidden)", sync),
        ("optimizer", optimizer),
    )
    train_tokens = float(np.mean([sum(n for g in groups for n in g) for groups in rows]))
    stories = float(
        np.mean([story_tokens(config, [n for g in groups for n in g]) for groups in steps])
    )
    return StepTime(phases, balance, tokens, stories, train_tokens * updates)


def row_cost(shape: ModelShape) -> RowCost:
    """Forward FLOPs of a row's body and head: `packing.RowCost` for a model that is not loaded."""
    heads = shape.config.num_attention_heads * shape.head_dim
    linear = 2.0 * (shape.body_parameters + shape.head_parameters) + _delta_rule_flops(shape)
    return RowCost(linear, 2.0 * shape.num_attention_layers * heads)


def _delta_rule_flops(shape: ModelShape) -> float:
    """Per token: the state is read, predicted from and written; chunks pay for their triangles."""
    layers = shape.layer_kinds.count("linear_attention")
    if not layers:
        return 0.0
    model = shape.config
    key, value = model.linear_key_head_dim, model.linear_value_head_dim
    per_head = 6 * key * value + 4 * _FLA_CHUNK * (key + value)
    return float(layers * model.linear_num_value_heads * per_head)


def _training_seconds(
    config: Config,
    shape: ModelShape,
    machine: Machine,
    balance: Balance,
    completion_tokens: float,
    assumed: Assumptions,
) -> float:
    """One pass over a step's rows: the costliest rank's forward and backward."""
    # forward, gradients of activations, of weights unless they are frozen, and forward again, which
    # selective checkpointing spares but for what has few FLOPs
    is_frozen = config.lora.r > 0
    passes = 2 + (not is_frozen) + (config.gradient_checkpointing is True)
    reference = 1 if config.beta > 0 else 0
    head = 2.0 * shape.head_parameters * completion_tokens / machine.count
    # the balance counts the head's forward in every row; its own passes are counted apart
    body = max(balance.cost_per_step - head, 0.0)
    peak = machine.bf16_flops
    head_passes = 2 + (not is_frozen) + reference
    return body * (passes + reference) / (peak * assumed.mfu) + head * head_passes / (
        peak * assumed.head_mfu
    )


def _generation_seconds(
    config: Config,
    shape: ModelShape,
    machine: Machine,
    groups: Groups,
    assumed: Assumptions,
    servers: Servers | None,
) -> float:
    """Decode steps read all weights and the caches; a wave lasts as long as its longest row."""
    item = 2 if config.dtype == "bfloat16" else 4
    weights = (shape.num_parameters - shape.embedding_parameters) * item
    per_token, per_row = cache_bytes_per_token(config, shape), state_bytes_per_row(config, shape)
    rate = machine.memory_bandwidth * assumed.bandwidth_share
    layer_us, writers, width = assumed.decode_layer_us, machine.count, config.rollout.max_batch_size
    if servers is not None:
        layer_us, writers, width = assumed.vllm_layer_us, servers.count, max(1, servers.rows)
        rate *= servers.gpus_each
    launch = shape.config.num_hidden_layers * layer_us * 1e-6
    lengths = np.sort([n for group in groups for n in group])[::-1]
    slowest = 0.0
    for writer in range(writers):
        own = lengths[writer::writers]
        seconds = 0.0
        for first in range(0, len(own), width):
            wave = own[first : first + width]
            # bytes of all caches over all steps: row of n tokens is read n times, n / 2 on average
            reads = per_token * (wave * (wave / 2 + config.max_prompt_length)).sum()
            reads += 2 * per_row * wave.sum() + weights * float(wave[0])
            seconds += max(reads / rate, launch * float(wave[0]))
        slowest = max(slowest, seconds)
    if servers is None and _zero_stage(config) == 3 and machine.count > 1:
        slowest += weights / (machine.link_bandwidth * assumed.link_share)
    return slowest


def _optimizer_seconds(
    config: Config, trained: Trained, machine: Machine, balance: Balance, assumed: Assumptions
) -> float:
    share = trained.elements / (machine.count if _zero_stage(config) else 1)
    if config.engine.offload_optimizer:
        moved = share * _OPTIMIZER_BYTES
        if config.engine.kind == "replicated":  # which sums gradients there too
            moved += share * _SUM_BYTES * balance.slots_per_step
        return moved / (assumed.host_bandwidth_gb * 1e9)
    return share * _OPTIMIZER_BYTES / (machine.memory_bandwidth * assumed.bandwidth_share)


def _sync_seconds(
    config: Config,
    shape: ModelShape,
    trained: Trained,
    machine: Machine,
    balance: Balance,
    assumed: Assumptions,
) -> float:
    """Collectives of a pass. Ring terms: (n - 1) / n of the bytes each way."""
    n = machine.count
    if n == 1:
        return 0.0
    ring = (n - 1) / n / (machine.link_bandwidth * assumed.link_share)
    P, E, stage = shape.num_parameters, trained.elements, _zero_stage(config)
    item = 2 if config.dtype == "bfloat16" else 4
    if stage == 0:
        return 2 * 4 * E * ring  # one all-reduce of fp32 gradients a step
    rounds = balance.slots_per_step / n
    reduce = rounds * 4 * E * ring  # gradients of every micro-batch, in fp32
    if stage < 3:
        return reduce + item * E * ring
    gathers = 3 if config.gradient_checkpointing else 2
    return reduce / 2 + rounds * gathers * item * P * ring


def _zero_stage(config: Config) -> int:
    return config.engine.zero_stage if config.engine.kind == "deepspeed" else 0
