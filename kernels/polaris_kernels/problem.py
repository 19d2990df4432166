"""`HeadProblem`: one validated projection + softmax problem, as every backend receives it.

Shapes: `N tokens . D hidden . V vocab`. The distribution is softmax(z) with
    s = hidden @ weight.T + bias            (rounded to bf16 when `logits_dtype="bf16"`)
    u = logit_scale * s
    z = u / temperature                     or softcap * tanh(u / softcap) / temperature
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .vocab_parallel import VocabParallel

LOGITS_DTYPES = ("fp32", "bf16")

# a chunk of logits, in bytes: large enough that a 248,320-wide fp32 chunk has 540 rows on the CPU
# and 2,161 on a GPU, where every chunk reads and writes the whole weight gradient
CHUNK_BYTES_CPU = 512 * 2**20
CHUNK_BYTES_GPU = 2 * 2**30


@dataclass(frozen=True)
class HeadOptions:
    """The keywords that the head's functions share; `linear_logps` describes them."""

    temperature: float | Tensor = 1.0
    softcap: float | None = None
    logit_scale: float = 1.0
    logits_dtype: str = "fp32"
    chunk_bytes: int | None = None
    backend: str | None = None
    vocab: VocabParallel | None = None
    compute_dtype: torch.dtype | None = None
    """`compute_dtype_of` the operands under the autocast of the call"""


@dataclass(frozen=True)
class HeadProblem:
    """Inputs of one head call, cast to the compute dtype and checked."""

    hidden: Tensor
    """(N, D) compute dtype"""
    weight: Tensor
    """(V, D) compute dtype"""
    targets: Tensor
    """(N,) int64 in [0, V)"""
    bias: Tensor | None
    """(V,) accumulation dtype, dense: kernels read it by its address"""
    temperature: float | Tensor
    """above 0; or (N,) accumulation dtype"""
    softcap: float | None
    logit_scale: float
    rounds_logits: bool
    """round the raw logits to bf16, as a rollout engine with bf16 logits does"""
    chunk_bytes: int
    hidden_grad_dtype: torch.dtype
    """of the hidden gradient: the caller's dtype, but fp32 for fp16 (grad_output comes first)"""
    weight_grad_dtype: torch.dtype
    """the least that the weight gradient may be rounded to: the same for the weight"""

    @property
    def num_tokens(self) -> int:
        """N"""
        return self.hidden.shape[0]

    @property
    def vocab_size(self) -> int:
        """V"""
        return self.weight.shape[0]

    @property
    def acc_dtype(self) -> torch.dtype:
        """Dtype of logits, statistics and accumulated gradients."""
        return accumulation_dtype(self.hidden.dtype)

    def temperature_of(self, tokens: slice) -> float | Tensor:
        """The temperature of some tokens, as a number or a (C, 1) column."""
        if isinstance(self.temperature, Tensor):
            return self.temperature[tokens, None]
        return self.temperature


def accumulation_dtype(compute_dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64 (the tests use it); everything else accumulates in float32."""
    return torch.float64 if compute_dtype == torch.float64 else torch.float32


def make_problem(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None,
    temperature: float | Tensor,
    softcap: float | None,
    logit_scale: float,
    logits_dtype: str,
    chunk_bytes: int | None,
    caller: str,
    compute_dtype: torch.dtype | None = None,
    total_vocab: int | None = None,
) -> HeadProblem:
    """Validate and cast.

    Args:
        hidden: (N, D) float; (V, D) `weight` of another dtype is promoted with it.
        targets: (N,) integers; checked against the vocabulary on the CPU.
        caller: name of the public function, for error messages.
        compute_dtype: None: `compute_dtype_of` the two.
        total_vocab: ids that targets may take, where `weight` is a shard; None: V.
    """
    _check_shapes(hidden, weight, targets, bias, caller)
    if logits_dtype not in LOGITS_DTYPES:
        raise ValueError(
            f"{caller}: logits_dtype={logits_dtype!r} is unknown; use one of {LOGITS_DTYPES}"
        )
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{caller}: softcap must be above 0, got {softcap}; None switches it off")
    if chunk_bytes is not None and chunk_bytes < 1:
        raise ValueError(f"{caller}: chunk_bytes must be 1 or more, got {chunk_bytes}")
    device = hidden.device
    check_above_zero(temperature, caller)
    compute = compute_dtype or compute_dtype_of(hidden, weight)
    acc = accumulation_dtype(compute)
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES_CPU if device.type == "cpu" else CHUNK_BYTES_GPU
    return HeadProblem(
        hidden=hidden.detach().to(compute),
        weight=weight.detach().to(compute),
        targets=check_targets(targets, total_vocab or weight.shape[0], caller),
        bias=as_bias(bias, acc),
        temperature=check_temperature(temperature, hidden.shape[0], device, acc, caller),
        softcap=softcap,
        logit_scale=float(logit_scale),
        rounds_logits=logits_dtype == "bf16",
        chunk_bytes=chunk_bytes,
        hidden_grad_dtype=grad_dtype_of(hidden),
        weight_grad_dtype=grad_dtype_of(weight),
    )


def as_bias(bias: Tensor | None, acc: torch.dtype) -> Tensor | None:
    """The bias as `HeadProblem` has it."""
    return None if bias is None else bias.detach().to(acc).contiguous()


def compute_dtype_of(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Dtype of the GEMMs' operands: promoted, or under autocast autocast's, as for `F.linear`."""
    compute = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(hidden.device.type) and compute != torch.float64:
        return torch.get_autocast_dtype(hidden.device.type)
    return compute


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """For the inside of the head, whose operands have their dtypes already: autocast would narrow
    the fp32 GEMMs."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def grad_dtype_of(leaf: Tensor) -> torch.dtype:
    """Dtype of a leaf's gradient until grad_output has come in: see `HeadProblem`."""
    return torch.float32 if leaf.dtype == torch.float16 else leaf.dtype


def _check_shapes(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, caller: str
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{caller}: hidden must be (N, D) and weight (V, D), got {tuple(hidden.shape)} and "
            f"{tuple(weight.shape)}; an empty weight means that a sharding engine has not gathered "
            "it: call the head as a module"
        )
    if tuple(targets.shape) != (hidden.shape[0],):
        raise ValueError(
            f"{caller}: targets must be ({hidden.shape[0]},), one per hidden row, "
            f"got {tuple(targets.shape)}"
        )
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(f"{caller}: targets must be integers, got {targets.dtype}")
    for name, tensor in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{caller}: {name} must be floating point, got {tensor.dtype}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"{caller}: bias must be ({weight.shape[0]},), got {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("targets", targets), ("bias", bias)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(
                f"{caller}: {name} is on {tensor.device} and hidden on {hidden.device}; "
                "move them to one device"
            )


def check_targets(targets: Tensor, vocab_size: int, caller: str) -> Tensor:
    """int64 targets; on the CPU, checked to be in [0, vocab_size)."""
    targets = targets.long()
    if targets.device.type == "cpu" and targets.numel():
        low, high = (int(x) for x in torch.aminmax(targets))
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{caller}: targets must be in [0, {vocab_size}), got {low} to {high}; "
                "tokens to ignore belong in rows.completion_mask"
            )
    return targets


def check_temperature(
    temperature: float | Tensor,
    num_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    caller: str,
) -> float | Tensor:
    """A positive number, or (num_tokens,) of `dtype` (any shape with that many is flattened)."""
    if not isinstance(temperature, Tensor):
        if not temperature > 0:
            raise ValueError(f"{caller}: temperature must be above 0, got {temperature}")
        return float(temperature)
    if temperature.is_floating_point() and temperature.element_size() < 4:
        # .7 would be .6992, and log-probs off by a tenth of that where logits reach 100
        raise ValueError(
            f"{caller}: temperature must be a number or float32, got {temperature.dtype}; FSDP2 "
            "casts every floating argument of a module it wraps: set "
            "MixedPrecisionPolicy(cast_forward_inputs=False), or give a number"
        )
    if temperature.dim() == 0 and temperature.device.type == "cpu":
        # reading it waits for nobody, and a number is cheaper than one a token
        return check_temperature(float(temperature), num_tokens, device, dtype, caller)
    if temperature.dim() == 0:
        return temperature.detach().to(device, dtype).expand(num_tokens)
    if temperature.numel() != num_tokens or temperature.device != device:
        raise ValueError(
            f"{caller}: temperature must be a number or one per token ({num_tokens}) on {device}, "
            f"got {tuple(temperature.shape)} on {temperature.device}"
        )
    return temperature.detach().reshape(-1).to(dtype)


def check_grad_scale(scale: float | Tensor, caller: str) -> float | Tensor:
    """A number or a () tensor, from a number or a tensor with one element of any shape."""
    if not isinstance(scale, Tensor):
        return scale
    if scale.numel() != 1:
        raise ValueError(
            f"{caller}: grad_scale must be one number for the whole loss, got a tensor of shape "
            f"{tuple(scale.shape)}; factors of rows belong into rows.row_weight"
        )
    return scale.detach().reshape(())


def check_above_zero(temperature: float | Tensor, caller: str) -> None:
    """ValueError where a token's temperature is not, on the CPU: a GPU would have to be waited for.

    Args:
        temperature: of tokens with loss alone; what lies under a mask may be anything.
    """
    if not isinstance(temperature, Tensor) or temperature.device.type != "cpu":
        return
    if not (temperature > 0).all():
        raise ValueError(
            f"{caller}: temperature must be above 0 for every token, got {float(temperature.min())}"
        )
