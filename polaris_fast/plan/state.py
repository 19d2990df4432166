"""What an engine keeps on a rank between micro-batches, and what its update needs for a moment.

P parameters . n ranks. The single-process terms are held to measured allocations in `tests/plan`;
DeepSpeed's were read off its allocations on two ranks and scaled.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..config import Config
from .kernels import Device
from .shapes import ModelShape

_FP32 = 4
# DeepSpeed's defaults, in elements
_REDUCE_BUCKET = 500_000_000
_LIVE_PARAMETERS = 1_000_000_000
_PREFETCH_BUCKET = 50_000_000
_SUB_GROUP = 1_000_000_000


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

    @property
    def resident(self) -> int:
        """What is there at any time."""
        return self.weights + self.masters + self.moments + self.reference


def engine_bytes(config: Config, shape: ModelShape, num_ranks: int, device: Device) -> EngineBytes:
    """The terms of the configured engine."""
    P, largest = shape.num_parameters, shape.largest_parameter
    item = 2 if config.dtype == "bfloat16" else _FP32
    whole = EngineBytes(
        weights=P * item,
        masters=P * _FP32 if item == 2 else 0,
        moments=2 * P * _FP32,
        reference=P * item if config.beta > 0 else 0,
        gradients=P * _FP32,
        buffers=0,
        backward=0,
        update=_adam_temporaries(P, largest, device),
        gather=0,
        host=P * item * num_ranks,  # every rank reads the model into CPU memory first
    )
    if config.engine.kind == "replicated":
        return whole
    return _zero(config, whole, shape, item, num_ranks, device)


def _adam_temporaries(elements: int, largest: int, device: Device) -> int:
    """torch's AdamW: on a GPU the square roots of all second moments at once (foreach), on a CPU
    two of one tensor."""
    return elements * _FP32 if device == "cuda" else 2 * largest * _FP32


def _zero(
    config: Config, whole: EngineBytes, shape: ModelShape, item: int, n: int, device: Device
) -> EngineBytes:
    stage, P = config.engine.zero_stage, shape.num_parameters
    share = -(-P // n)
    shard = share * _FP32
    in_flight = 2 if device == "cuda" else 1  # overlap_comm keeps a second bucket
    bucket = in_flight * _REDUCE_BUCKET * (_FP32 if stage < 3 else item)
    host = whole.host
    engine = whole.scaled(
        masters=shard,  # fp32 models too: DeepSpeed copies
        moments=2 * shard,
        gradients=whole.gradients if stage == 1 else shard,
        buffers=bucket,
        # a tensor larger than the bucket travels alone: its gradient in fp32 and as it came
        backward=shape.largest_parameter * (_FP32 + item),
        update=_adam_temporaries(share, share, device),
    )
    if stage == 3:
        live = min(P, _LIVE_PARAMETERS) + min(P, _PREFETCH_BUCKET)
        group = min(share, _SUB_GROUP)
        engine = engine.scaled(
            weights=share * item,
            buffers=bucket + live * item,
            update=group * _FP32 + _adam_temporaries(group, group, device),
            gather=P * item,
        )
    if config.engine.offload_optimizer:
        host += n * 5 * shard  # masters, moments, summed and flat gradients
        engine = engine.scaled(masters=0, moments=0, gradients=0, update=0)
    if config.engine.offload_param:
        host += n * share * item
        engine = engine.scaled(weights=0)
    return engine.scaled(host=host)
