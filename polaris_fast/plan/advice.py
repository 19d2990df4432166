"""The longest row that fits, and what to switch on to fit more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..config import Config
from ..model.layer_kernels import family_of
from ..types import UserError
from .hardware import Machine
from .memory import MemoryPlan, memory_plan
from .shapes import ModelShape

_STEP = 512  # tokens
_TILE = 2048  # tokens of an MLP's tile that keep a GPU busy
_LONGEST = {"cuda": 131_072, "cpu": 4_096}  # no row beyond is looked for


@dataclass(frozen=True)
class Advice:
    """One change of the configuration and what it brings."""

    settings: tuple[str, ...]  # KEY=VALUE
    saving: int  # bytes of the peak
    fits: bool
    longest_row: int  # tokens, 0 when none fits
    note: str


def longest_row(config: Config, shape: ModelShape, machine: Machine) -> int:
    """Most tokens, prompt included, of a row that trains and is written; a multiple of 512.

    0 when not even that many fit; the cap where all do.
    """
    low, high = 0, _LONGEST[machine.device] // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        if _plan_of_length(config, shape, machine, middle * _STEP).fits:
            low = middle
        else:
            high = middle - 1
    return low * _STEP


def _plan_of_length(config: Config, shape: ModelShape, machine: Machine, length: int) -> MemoryPlan:
    prompt = min(config.max_prompt_length, length // 2)
    packing = config.packing.model_copy(update={"max_tokens_per_microbatch": length})
    changed = config.model_copy(
        update={
            "max_prompt_length": prompt,
            "max_completion_length": length - prompt,
            "packing": packing,
        }
    )
    return memory_plan(changed, shape, machine)


def advise(config: Config, shape: ModelShape, machine: Machine, now: MemoryPlan) -> list[Advice]:
    """Each change on its own, largest saving first; those that save nothing are left out, and
    those that the configuration refuses."""
    found = []
    for settings, note in _changes(config, shape, machine):
        changed = with_settings(config, settings)
        if not _is_accepted(changed):
            continue
        plan = memory_plan(changed, shape, machine)
        saving = now.total - plan.total
        if saving < 0.005 * now.total:
            continue
        longest = longest_row(changed, shape, machine)
        found.append(Advice(_words(settings), saving, plan.fits, longest, note))
    return sorted(found, key=lambda advice: -advice.saving)


def smallest_remedy(
    config: Config, shape: ModelShape, machine: Machine
) -> tuple[tuple[str, ...], MemoryPlan] | None:
    """Changes that together make the run fit, none of them needless; None: all do not suffice."""

    def merged(changes: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {key: value for change in changes for key, value in change.items()}

    def accepts(changes: Sequence[dict[str, Any]]) -> bool:
        return _is_accepted(with_settings(config, merged(changes)))

    def plan_with(changes: Sequence[dict[str, Any]]) -> MemoryPlan:
        return memory_plan(with_settings(config, merged(changes)), shape, machine)

    chosen: list[dict[str, Any]] = []
    for change, _ in _changes(config, shape, machine):
        if not accepts([change]):
            continue
        while not accepts([*chosen, change]):  # what it cannot be combined with makes way
            chosen.remove(next((c for c in chosen if not accepts([c, change])), chosen[0]))
        chosen.append(change)
        if plan_with(chosen).fits:
            break
    else:
        return None
    for change in chosen[:-1]:
        others = [c for c in chosen if c is not change]
        if accepts(others) and plan_with(others).fits:
            chosen = others
    return _words(merged(chosen)), plan_with(chosen)


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """The configuration with dotted keys replaced, unchecked."""
    for dotted, value in settings.items():
        section, _, key = dotted.rpartition(".")
        if section:
            inner = getattr(config, section).model_copy(update={key: value})
            config = config.model_copy(update={section: inner})
        else:
            config = config.model_copy(update={key: value})
    return config


def _is_accepted(config: Config) -> bool:
    try:
        Config.model_validate(config.model_dump())
    except (ValueError, UserError):
        return False
    return True


def _changes(
    config: Config, shape: ModelShape, machine: Machine
) -> Iterator[tuple[dict[str, Any], str]]:
    """Switches that are off, cheapest in time first."""
    row = config.max_prompt_length + (config.max_completion_length or 0)
    if row < config.packing.max_tokens_per_microbatch:
        yield (
            {"packing.max_tokens_per_microbatch": row},
            "the longest row needs no more; more and smaller micro-batches",
        )
    whole = config.gradient_checkpointing is True
    if not config.gradient_checkpointing and not config.mlp_tile_tokens:
        yield {"gradient_checkpointing": "selective"}, "norms and activations once more in backward"
    if not whole:
        yield {"gradient_checkpointing": True}, "one more forward in backward"
    elif not config.offload_activations and machine.device == "cuda":
        yield {"offload_activations": True}, "layers' inputs travel to CPU memory and back"
    tileable = config.gradient_checkpointing != "selective" and not config.mlp_tile_tokens
    if tileable and config.packing.max_tokens_per_microbatch > 4 * _TILE:
        yield {"mlp_tile_tokens": _TILE}, "MLPs run in tiles, once more in backward"
    if config.dtype == "float32":
        yield {"dtype": "bfloat16"}, "fp32 masters stay"
    if config.rollout.max_batch_size > 1:
        yield (
            {"rollout.max_batch_size": max(1, config.rollout.max_batch_size // 8)},
            "less cache; more waves of writing",
        )
    if machine.device == "cuda":
        yield from _layer_kernels(config, shape)
        yield from _optimizers(config, machine.count)
        yield from _shardings(config, machine.count)
    if config.lora.r == 0:
        yield (
            {"lora.r": 64, "lora.alpha": 128},
            "another method: adapters alone are trained, with a learning rate of their own",
        )


def _layer_kernels(config: Config, shape: ModelShape) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        family_of(shape.config)
    except UserError:
        return
    if not config.liger_kernels and find_spec("liger_kernel") is not None:
        yield {"liger_kernels": True}, "none known; needs the package liger-kernel"


def _optimizers(config: Config, num_ranks: int) -> Iterator[tuple[dict[str, Any], str]]:
    """What makes the optimizer's state small, or moves it away, without shards."""
    if config.engine.kind == "deepspeed" or config.lora.r > 0 or config.engine.offload_optimizer:
        return
    if config.optim == "adamw_torch":
        yield {"optim": "adamw_8bit"}, "rounded moments; needs the package bitsandbytes"
        if num_ranks == 1:
            yield (
                {"engine.offload_optimizer": True},
                "gradients and optimizer in CPU memory: slow micro-batches, a slow update",
            )


def _shardings(config: Config, num_ranks: int) -> Iterator[tuple[dict[str, Any], str]]:
    sharded = config.engine.kind == "deepspeed"
    stage = config.engine.zero_stage if sharded else 0
    kind: dict[str, Any] = {} if sharded else {"engine.kind": "deepspeed"}
    refused = (1, 3) if config.rollout.engine == "vllm" else (1,)  # 1 in bfloat16, 3 with servers
    if not sharded and config.engine.zero_stage in refused:
        kind["engine.zero_stage"] = 2
    if config.optim == "adamw_8bit":  # which DeepSpeed cannot cut
        kind["optim"] = "adamw_torch"
    if stage < 2 and num_ranks > 1:
        yield kind | {"engine.zero_stage": 2}, "gradients and optimizer state in shards"
    if stage < 3 and num_ranks > 1 and config.rollout.engine == "hf":
        yield (
            kind | {"engine.zero_stage": 3},
            "weights in shards too; gathered for every micro-batch",
        )
    if (sharded or num_ranks > 1) and not config.engine.offload_optimizer and config.lora.r == 0:
        yield kind | {"engine.offload_optimizer": True}, "optimizer in CPU memory: a slow update"
    if stage == 3 and not config.engine.offload_param:
        yield {"engine.offload_param": True}, "weights in CPU memory: slow micro-batches"


def _words(settings: dict[str, Any]) -> tuple[str, ...]:
    text = {True: "true", False: "false"}
    return tuple(
        f"{key}={text[value] if isinstance(value, bool) else value}"
        for key, value in settings.items()
    )
