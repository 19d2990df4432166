"""Where a weight gradient that does not go through autograd is added: `.grad` or `.main_grad`.

One (V, D) buffer instead of two: the GEMM of every chunk adds into the tensor that the optimizer
reads. What autograd would do in backward is done in forward, so the final scale has to be known
there, and whatever waits for the weight's gradient to arrive (hooks, the buckets of
DistributedDataParallel, ZeRO's reduction) never hears of it. FSDP2 reads `.grad` of the parameter
it has gathered: "grad" works inside its modules.
"""

import torch
from torch import Tensor

from .problem import accumulation_dtype

DESTINATIONS = ("grad", "main_grad")


def gradient_buffer(weight: Tensor, destination: str, caller: str) -> Tensor:
    """The (V, D) tensor that the weight's gradient is added to, made (zero) if `.grad` is None.

    Raises:
        ValueError: an unknown destination; a weight that takes no gradient or is no leaf; one whose
            storage a sharding engine owns; no `main_grad`; a buffer of another shape, layout,
            device or dtype than the weight's (float32 is always accepted, float64 for float64).
    """
    if destination not in DESTINATIONS:
        raise ValueError(
            f"{caller}: accumulate_into={destination!r} is unknown; use one of {DESTINATIONS}"
        )
    where = f"accumulate_into={destination!r}"
    if not weight.is_leaf or not weight.requires_grad:
        raise ValueError(
            f"{caller}: {where} needs a weight that is a parameter and takes a gradient, got "
            f"is_leaf={weight.is_leaf}, requires_grad={weight.requires_grad}; leave it out"
        )
    # ZeRO marks its parameters; FSDP2's are DTensors but inside the module's own call
    if hasattr(weight, "ds_id") or hasattr(weight, "placements"):
        raise ValueError(
            f"{caller}: {where} is not for a weight that a sharding engine owns: under ZeRO its "
            "gradient must come through autograd: leave it out; under FSDP2 call the module"
        )
    buffer = getattr(weight, destination, None)
    if buffer is None:
        if destination == "main_grad":
            raise ValueError(
                f"{caller}: {where}, but the weight has no main_grad; set it to "
                "torch.zeros_like(weight, dtype=torch.float32)"
            )
        weight.grad = buffer = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    _check_buffer(buffer, weight, f"{caller}: {where}")
    return buffer


def assert_is_one(grad_output: Tensor) -> None:
    """RuntimeError unless the scalar is 1; on CUDA by a device-side assertion, without a wait."""
    message = (
        "linear_grpo_loss: backward brought a gradient other than 1, but the weight's gradient was "
        "added to its buffer in forward; call loss.backward() on the loss itself and pass its "
        "factor as grad_scale"
    )
    if grad_output.device.type == "cpu":
        if grad_output != 1:
            raise RuntimeError(message)
        return
    torch._assert_async(grad_output == 1, message)


def _check_buffer(buffer: Tensor, weight: Tensor, where: str) -> None:
    expected = (weight.dtype, accumulation_dtype(weight.dtype))
    if (
        buffer.shape != weight.shape
        or buffer.device != weight.device
        or buffer.dtype not in expected
        or not buffer.is_contiguous()
        or buffer.requires_grad
    ):
        raise ValueError(
            f"{where}: the buffer must be contiguous {tuple(weight.shape)} "
            f"{' or '.join(str(d) for d in dict.fromkeys(expected))} on {weight.device} without "
            f"requires_grad, got {tuple(buffer.shape)} {buffer.dtype} on {buffer.device} with "
            f"strides {buffer.stride()}, requires_grad={buffer.requires_grad}"
        )
