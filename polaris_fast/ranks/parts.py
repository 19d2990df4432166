"""What one rank computes with, built alike on every rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist

from ..config import Config
from ..device import choose_device
from ..engine import Engine, ReplicatedEngine, SingleEngine
from ..engine.optimizer import import_bitsandbytes
from ..merging import Weight
from ..model.carried import find_base
from ..model.kernel_choice import Kind
from ..model.layer_kernels import check_layer_kernels, family_of, install_layer_kernels
from ..model.load import is_multimodal, load_causal_lm, quiet_transformers, read_config
from ..model.lora import Adapters, import_peft, whole_state
from ..model.measured_kernels import Shapes, check_asked, measure_kernels, use_kernels
from ..model.memory import install_memory_savers
from ..model.naming import checkpoint_names
from ..model.parity import PackingLeak, check_packing
from ..rollout import RolloutEngine
from ..rollout.hf import HFEngine
from ..slots import SlotTrainer
from ..stopping import StopRequested
from ..types import UserError
from .world import World

if TYPE_CHECKING:
    from ..rollout.vllm.fleet import Fleet

T = TypeVar("T")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Orders:
    """What a rank needs to know to build its parts."""

    config: Config  # resolved
    model_path: str
    reference_path: str | None  # for the KL term
    checkpoint: str | None  # of the run that is resumed: engine state
    total_updates: int  # length of the learning-rate schedule
    run_dir: str = "."  # for the logs of what is launched


@dataclass(frozen=True)
class Parts:
    """Model, engine, slots and rollouts of this rank alone."""

    model: Any
    engine: Engine
    slots: SlotTrainer
    rollouts: RolloutEngine | None  # None on a follower where servers write for all ranks


def build_parts(
    orders: Orders, world: World, check_stop: Callable[[], None] = lambda: None
) -> Parts:
    """Load the model and make what trains it and writes with it.

    Servers start while the model loads. Those on a GPU of the trainer's are awaited first, and put
    to sleep where they can be: vLLM takes memory that the trainer claims or frees meanwhile for
    its own doing.

    Args:
        check_stop: called while servers are awaited; may raise.

    Raises:
        UserError: the model cannot be loaded, or a server does not start. PackingLeak: its packed
            rows see each other.
    """
    if orders.config.rollout.engine == "hf":
        return _load_parts(orders, world, None)
    with ExitStack() as undo:
        fleet = _all_or_none(lambda: _open_servers(orders, world, undo, check_stop), world)
        parts = _load_parts(orders, world, fleet)
        undo.pop_all()
        return parts


def _open_servers(
    orders: Orders, world: World, undo: ExitStack, check_stop: Callable[[], None]
) -> Fleet | None:
    """This rank's servers: only the conductor speaks with them, but for those of its own GPU."""
    vllm = orders.config.rollout.vllm
    if not world.is_conductor and vllm.placement != "colocated":
        return None
    fleet = _start_servers(orders, world)
    undo.callback(fleet.close)
    if vllm.shares_trainers_gpu:
        fleet.wait_ready(check_stop)
    if vllm.placement == "colocated":
        fleet.sleep()
    return fleet


def _all_or_none(action: Callable[[], T], world: World) -> T:
    """The result of `action`, which every rank runs; when one fails, no rank goes on.

    A rank that went on would wait in its next collective for one that is gone.

    Raises:
        UserError: another rank's fault, in its words. Else what `action` raised here: UserError,
            PackingLeak or StopRequested.
    """
    if world.size == 1:
        return action()
    result, fault = None, None
    try:
        result = action()
    except (UserError, PackingLeak, StopRequested) as error:
        fault = error
    faults: list[str | None] = [None] * world.size
    dist.all_gather_object(faults, None if fault is None else str(fault))
    if fault is not None:
        raise fault
    for rank, words in enumerate(faults):
        if words is not None:
            raise UserError(f"rank {rank}: {words}")
    return cast(T, result)


def _start_servers(orders: Orders, world: World) -> Fleet:
    from ..rollout.vllm.fleet import Fleet

    config = orders.config
    device = choose_device(config, world.local_rank)
    backend = config.rollout.vllm.transfer_on(device.type)
    own = None
    if config.rollout.vllm.placement == "colocated":
        own = (world.rank, device.index or 0)
    return Fleet(
        config,
        orders.model_path,
        log_dir=Path(orders.run_dir),
        backend=backend,
        text_only=is_multimodal(read_config(orders.model_path)),
        own=own,
    )


def _load_parts(orders: Orders, world: World, fleet: Fleet | None) -> Parts:
    quiet_transformers()
    config = orders.config
    dtype = _DTYPES[config.dtype]
    model, device = _all_or_none(lambda: _load_model(orders, world, dtype), world)
    _choose_kernels(config, world, model, device, dtype)
    adapters, reference = _all_or_none(lambda: _fit_out(orders, model, device, dtype), world)

    def make_engine() -> Engine:
        return _engine_kind(config, world)(
            model,
            config,
            config.loss_spec(),
            total_updates=orders.total_updates,
            reference=reference,
            adapters=adapters,
        )

    # apart from what precedes it, as its own collectives need every rank
    engine = _all_or_none(make_engine, world)
    if orders.checkpoint is not None:
        engine.load(Path(orders.checkpoint))
    rollouts = _rollouts(config, engine, adapters, fleet)
    return Parts(model, engine, SlotTrainer(engine, config, world.rank), rollouts)


def _load_model(orders: Orders, world: World, dtype: torch.dtype) -> tuple[Any, torch.device]:
    config = orders.config
    device = choose_device(config, world.local_rank)
    torch.manual_seed(config.seed)
    if config.liger_kernels:
        family_of(read_config(orders.model_path))
    model: Any = load_causal_lm(orders.model_path, dtype=dtype, device=device)
    if config.liger_kernels:
        install_layer_kernels(model)
    # says now what could not be saved later
    find_base(model.state_dict(), model.config, config.model_name_or_path)
    return model, device


def _fit_out(
    orders: Orders, model: Any, device: torch.device, dtype: torch.dtype
) -> tuple[Adapters | None, Any]:
    """Adapters in the model and the reference beside it, once its packed rows are proven apart."""
    config = orders.config
    check_packing(model)
    adapters = Adapters(model, config.lora) if config.lora.r > 0 else None
    reference: Any = None
    if orders.reference_path is not None:
        reference = load_causal_lm(orders.reference_path, dtype=dtype, device=device)
        reference.requires_grad_(False)
        if config.liger_kernels:
            install_layer_kernels(reference)
    install_memory_savers(model, config)
    return adapters, reference


def _choose_kernels(
    config: Config, world: World, model: Any, device: torch.device, dtype: torch.dtype
) -> None:
    """Every rank runs on what the first one has measured, so that all round alike."""
    found: list[Any] = [None]
    if world.is_conductor:
        longest = config.max_prompt_length + (config.max_completion_length or 0)
        try:
            shapes = Shapes.of(model.get_decoder().config)
            asked = _asked_kernels(config)
            found = [measure_kernels(shapes, device, dtype, longest, asked=asked)]
        except UserError as error:
            found = [error]
    if world.size > 1:
        dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
    if isinstance(found[0], UserError):
        raise found[0]
    use_kernels(found[0])


def _rollouts(
    config: Config, engine: Engine, adapters: Adapters | None, fleet: Fleet | None
) -> RolloutEngine | None:
    if config.rollout.engine == "hf":
        return HFEngine(engine.model, config.rollout.max_batch_size, engine.whole_weights)
    if fleet is None:
        return None
    from ..rollout.vllm.engine import open_vllm

    model = engine.model

    def weights() -> Mapping[str, Weight]:
        state = whole_state(model)
        to_send: Mapping[str, Weight] = state if adapters is None else adapters.to_merge(state)
        return checkpoint_names(to_send, model.config.model_type)

    return open_vllm(config, fleet, weights, model.device)


def _engine_kind(config: Config, world: World) -> Callable[..., Engine]:
    if config.engine.kind == "deepspeed":
        from ..engine.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine
    return SingleEngine if world.size == 1 else ReplicatedEngine


def _asked_kernels(config: Config) -> dict[Kind, str]:
    return {"attention": config.packing.attention, "delta_net": config.packing.delta_net}


def check_engine(config: Config, device: torch.device, world: World) -> None:
    """Everything `build_parts` will import is there, and what it is to do can be done here.

    Raises:
        UserError: names the key, `engine.kind` for one, and the remedy.
    """
    if config.engine.kind == "deepspeed":
        from ..engine.deepspeed import import_deepspeed, read_user_config

        read_user_config(config)
        import_deepspeed(device.type)
    elif config.engine.offload_optimizer and (device.type == "cpu" or world.size > 1):
        what = "the device is the CPU" if device.type == "cpu" else f"{world.size} processes train"
        raise UserError(
            f"engine.offload_optimizer: {what}, and engine.kind replicated moves the optimizer to "
            "CPU memory for one process on a GPU; set engine.kind to deepspeed, or "
            "engine.offload_optimizer to false"
        )
    if config.lora.r > 0:
        import_peft()
    if config.optim == "adamw_8bit":
        import_bitsandbytes()
    if config.liger_kernels:
        check_layer_kernels(device)
    check_asked(_asked_kernels(config), device)
