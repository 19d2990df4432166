"""What an engine keeps on a rank between micro-batches, and what its update needs for a moment.

P parameters . n ranks. The single-process terms are held to measured allocations in `tests/plan`;
DeepSpeed's were read off its allocations on two ranks and scaled.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..config import Config
from .kernels import Device
from .sample import Trained
from .shapes import ModelShape

_FP32 = 4
# DeepSpeed's defaults, in elements
_REDUCE_BUCKET = 500_000_000
_LIVE_PARAMETERS = 1_000_000_000
_PREFETCH_BUCKET = 50_000_000
_SUB_GROUP = 1_000_000_000
_BLOCK = 256  # elements that share a scale in the 8-bit moments of bitsandbytes


@dataclass(frozen=True)
class EngineBytes:
    """Bytes on one rank; `host` is CPU memory of all its ranks' processes together."""

    weights: int
    masters: int
    moments: int
    reference: int  # frozen model of the KL term
    gradients: int  # from the first backward of a step to its update
    buffers: int  # buckets, and weights that ZeRO-3 has gathered
    backward: int  # for a moment in backward: one gradient on its way to its sum
    update: int  # for a moment in the update
    gather: int  # while stories are written: whole weights of a sharded model
    host: int

    def scaled(self, **changed: int) -> EngineBytes:
        """A copy with some terms replaced."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return EngineBytes(**(values | changed))


def engine_bytes(
    config: Config, shape: ModelShape, trained: Trained, num_ranks: int, device: Device
) -> EngineBytes:
    """The terms of the configured engine."""
    item = 2 if config.dtype == "bfloat16" else _FP32
    weights = shape.num_parameters * item + trained.extra
    whole = EngineBytes(
        weights=weights,
        masters=trained.elements * _FP32 if trained.itemsize < _FP32 else 0,
        moments=2 * trained.elements * _FP32,
        # with adapters off the model is its own reference
        reference=weights if config.beta > 0 and config.lora.r == 0 else 0,
        gradients=trained.elements * _FP32,
        buffers=0,
        backward=0,
        update=_adam_temporaries(trained.elements, trained.largest, device),
        gather=0,
        host=weights * num_ranks,  # every rank reads the model into CPU memory first
    )
    if config.engine.kind == "replicated":
        return _replicated(config, whole, trained)
    return _zero(config, whole, shape, trained, item, num_ranks, device)


def _replicated(config: Config, whole: EngineBytes, trained: Trained) -> EngineBytes:
    if config.engine.offload_optimizer:
        host = whole.host + 4 * trained.elements * _FP32  # masters, moments, gradients
        return whole.scaled(masters=0, moments=0, gradients=0, update=0, host=host)
    if config.optim == "adamw_8bit":
        moments = 2 * (trained.elements + trained.elements * _FP32 // _BLOCK)
        return whole.scaled(moments=moments, update=0)
    return whole


def _adam_temporaries(elements: int, largest: int, device: Device) -> int:
    """torch's AdamW: on a GPU the square roots of all second moments at once (foreach), on a CPU
    two of one tensor."""
    return elements * _FP32 if device == "cuda" else 2 * largest * _FP32


def _zero(
    config: Config,
    whole: EngineBytes,
    shape: ModelShape,
    trained: Trained,
    item: int,
    n: int,
    device: Device,
) -> EngineBytes:
    stage = config.engine.zero_stage
    # DeepSpeed casts adapters to the model's type
    P = shape.num_parameters + (trained.elements if trained.extra else 0)
    share = -(-trained.elements // n)
    shard = share * _FP32
    in_flight = 2 if device == "cuda" and stage > 1 else 1  # overlap_comm keeps a second bucket
    bucket = in_flight * _REDUCE_BUCKET * (_FP32 if stage < 3 else item)
    host = whole.host
    engine = whole.scaled(
        weights=P * item,
        masters=shard,  # fp32 models too: DeepSpeed copies
        moments=2 * shard,
        gradients=whole.gradients if stage == 1 else shard,
        buffers=bucket,
        # a tensor larger than the bucket travels alone: its gradient in fp32 and as it came
        backward=trained.largest * (_FP32 + item),
        update=_adam_temporaries(share, share, device),
    )
    if stage == 3:
        live = min(P, _LIVE_PARAMETERS) + min(P, _PREFETCH_BUCKET)
        group = min(share, _SUB_GROUP)
        engine = engine.scaled(
            weights=-(-P // n) * item,
            buffers=bucket + live * item,
            update=group * _FP32 + _adam_temporaries(group, group, device),
            gather=P * item,
        )
    if config.engine.offload_optimizer:
        host += n * 4 * shard  # masters, moments, flat gradients
        if stage < 3 and item < _FP32:  # the sums stay where they are made
            engine = engine.scaled(masters=0, moments=0, update=0)
        else:
            host += n * shard
            engine = engine.scaled(masters=0, moments=0, gradients=0, update=0)
    if config.engine.offload_param:
        host += P * item
        engine = engine.scaled(weights=0)
    return engine.scaled(host=host)
