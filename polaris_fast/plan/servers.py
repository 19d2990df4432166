"""vLLM servers of a run: the GPUs they take from training, and the rows they hold at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import Config
from ..types import UserError
from .generation import cache_bytes_per_token, state_bytes_per_row
from .hardware import GIB, Machine
from .shapes import ModelShape

# vLLM's own share of a GPU where `gpu_memory_utilization` is not set, and what it needs of it
# beside weights and cache.
_UTILIZATION = 0.9
_WORKSPACE = 2 * GIB
# Of weights on their way: what is packed together at least, and how many packs `nccl` has at once.
_PACK = GIB
_NCCL_PACKS = 2
_FP32 = 4


@dataclass(frozen=True)
class Servers:
    """All servers of a run, alike."""

    count: int
    gpus_each: int
    shares_gpus: bool  # with the trainer: `colocated` and `ipc`
    sleeps: bool  # while the trainer trains: `colocated`
    memory: int  # bytes of one GPU that the server takes
    weights: int  # of these
    transfer: int  # bytes that the trainer needs for a moment to send its weights
    rows: int  # of full length that one server holds at once, at most `rollout.max_batch_size`


def servers_of(config: Config, shape: ModelShape, machine: Machine) -> Servers | None:
    """The configured servers; None where stories are written with the training weights.

    Args:
        machine: the ranks' part: colocated servers are one a rank.
    """
    if config.rollout.engine != "vllm":
        return None
    vllm = config.rollout.vllm
    memory = int((vllm.gpu_memory_utilization or _UTILIZATION) * machine.memory_bytes)
    if machine.device == "cpu":
        memory = vllm.cpu_kv_cache_gib * GIB + _weights(config, shape) + _WORKSPACE
    tp = vllm.tensor_parallel_size
    weights = _weights(config, shape)
    room = tp * (memory - _WORKSPACE) - weights
    length = config.max_prompt_length + (config.max_completion_length or 0)
    per_row = length * cache_bytes_per_token(config, shape) + state_bytes_per_row(config, shape)
    sleeps = vllm.placement == "colocated"
    launched = machine.count if sleeps else vllm.num_servers
    return Servers(
        count=launched if vllm.launch else len(vllm.base_urls),
        gpus_each=tp,
        shares_gpus=vllm.shares_trainers_gpu,
        sleeps=sleeps,
        memory=memory,
        weights=weights // tp,
        transfer=_transfer(config, shape, machine),
        rows=max(0, min(config.rollout.max_batch_size, room // per_row)),
    )


def own_gpus(config: Config) -> int:
    """GPUs that launched servers keep for themselves."""
    vllm = config.rollout.vllm
    own = config.rollout.engine == "vllm" and vllm.launch and not vllm.shares_trainers_gpu
    return vllm.num_servers * vllm.tensor_parallel_size if own else 0


def training_part(config: Config, machine: Machine) -> Machine:
    """The machine without the GPUs that launched servers keep for themselves.

    Raises:
        UserError: they leave none to train on.
    """
    taken = own_gpus(config) if machine.device == "cuda" else 0
    if not taken:
        return machine
    if taken >= machine.count:
        raise UserError(
            f"--gpus: {machine.count} GPUs, and rollout.vllm takes {taken} (num_servers * "
            "tensor_parallel_size): none is left to train on; give more GPUs or fewer servers, or "
            "set rollout.vllm.placement to colocated and rollout.vllm.gpu_memory_utilization to "
            "the servers' share of each GPU"
        )
    return replace(machine, count=machine.count - taken)


def _transfer(config: Config, shape: ModelShape, machine: Machine) -> int:
    """`ipc` packs into one buffer that holds any tensor; an `nccl` pack ends with the tensor that
    fills it, which may be the largest. Adapters are merged as they are packed."""
    item = 2 if config.dtype == "bfloat16" else _FP32
    largest = shape.largest_parameter * item
    width = shape.config.hidden_size
    matrix = width * getattr(shape.config, "intermediate_size", 4 * width) * (_FP32 + item)
    adapted = config.lora.r > 0
    if machine.device == "cpu":
        return matrix * adapted
    if config.rollout.vllm.shares_trainers_gpu:
        return max(_PACK, largest) + matrix * adapted
    return _NCCL_PACKS * _PACK + largest + (_NCCL_PACKS * _PACK + matrix) * adapted


def _weights(config: Config, shape: ModelShape) -> int:
    return shape.num_parameters * (2 if config.dtype == "bfloat16" else 4)
