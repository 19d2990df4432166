"""Stand-ins on shapes alone for the kernels that a model's forward calls on a real device.

A tensor without memory cannot run FlashAttention, fla's delta rule or the fused head. Each stand-in
makes the tensors that the kernel makes, saves the ones it saves for backward and frees the rest, so
that the ledger counts them.

T packed tokens . N targets . H query heads . Hkv key/value heads . d head dim . K, V delta-net head
dims . G value heads . D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import torch
import torch.nn.attention.varlen  # registers its operator
from torch import Tensor

from ..model import attention, delta_net
from ..model.layout import PackedLayout

Device = Literal["cpu", "cuda"]

_FLA_CHUNK = 64  # tokens between two states that fla's chunked delta rule keeps


@contextmanager
def standing_in(device: Device, *, liger: bool = False) -> Iterator[None]:
    """Inside the block, meta tensors go through what the device's kernels would allocate.

    Args:
        liger: Liger's kernels are in the layers.
    """
    with ExitStack() as stack:
        for module, name, replacement in _REPLACED[device]:
            stack.enter_context(mock.patch.object(module, name, replacement))
        for target, replacement in _LIGER.items() if liger else ():
            stack.enter_context(mock.patch(target, replacement))
        yield


def _cpu_attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """The kernel that torch chooses on the CPU; on meta tensors it would take the plain formula."""
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, options["dropout_p"], options["is_causal"], scale=options["scale"]
    )[0]
    return out


class _FlashAttention(torch.autograd.Function):
    """FlashAttention-2, varlen: saves its inputs, the output and a log-sum-exp a query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bounds = q.new_empty(2, dtype=torch.int32)
        tokens = q.shape[0]
        # torch's own operator has shapes; selective checkpointing knows it by its name
        out, lse, _ = torch.ops.torch_attn._varlen_attn(q, k, v, bounds, bounds, tokens, tokens)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _, lse = ctx.saved_tensors
        wide = q.new_empty(q.shape, dtype=torch.float32)  # dq is summed in fp32
        expanded = [q.new_empty(q.shape) for _ in range(2)]  # dk and dv of every query head
        row_sums = torch.empty_like(lse)
        grads = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        del wide, expanded, row_sums
        return grads


def _flash_varlen(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, *unused: Any) -> Tensor:
    out: Tensor = _FlashAttention.apply(q, k, v)
    return out


class _Conv(torch.autograd.Function):
    """fla's varlen causal convolution: saves its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _fla_conv(x: Tensor, weight: Tensor, bias: Tensor | None, layout: PackedLayout) -> Tensor:
    out: Tensor = _Conv.apply(x, weight)
    return out


class _DeltaRule(torch.autograd.Function):
    """fla's chunked gated delta rule: saves unit queries and keys, values, gates and A^-1.

    The states between chunks and the writes are made again in backward.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        q, k = torch.empty_like(q), torch.empty_like(k)
        norms = [g.new_empty(g.shape, dtype=torch.float32) for _ in range(2)]
        sums = torch.empty_like(g)
        wide = k.new_empty(*g.shape, _FLA_CHUNK, dtype=torch.float32)
        inverse = torch.empty_like(wide, dtype=k.dtype)
        del wide
        work = _writes_and_states(k, v)
        out = torch.empty_like(v)
        ctx.save_for_backward(q, k, v, sums, beta, inverse, *norms)
        del work
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, g, beta, *_ = ctx.saved_tensors
        again = _writes_and_states(k, v)
        local = torch.empty_like(v)  # dv inside chunks
        states = torch.empty_like(again[-1])
        through = torch.empty_like(v)  # dv with what comes through the states
        del local
        made = [torch.empty_like(x) for x in (q, k, k)]  # dq, dk, dw
        del states
        grads = [torch.empty_like(x) for x in (k, v, beta, g, g)]  # dk's other part, dv, ...
        del again, through
        return made[0], made[1], grads[1], grads[3], grads[2]


def _writes_and_states(k: Tensor, v: Tensor) -> list[Tensor]:
    """w, u, the corrected writes, and the state before every chunk, last."""
    chunks = -(-k.shape[0] // _FLA_CHUNK)
    states = k.new_empty(chunks, k.shape[1], k.shape[2], v.shape[2])
    return [torch.empty_like(k), torch.empty_like(v), torch.empty_like(v), states]


def _fla_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, layout: PackedLayout
) -> Tensor:
    group = v.shape[1] // k.shape[1]
    if group > 1:  # as `PackedDeltaNet` does for fla
        q, k = (x.repeat_interleave(group, dim=1) for x in (q, k))
    out: Tensor = _DeltaRule.apply(*(x.contiguous() for x in (q, k, v, g, beta)))
    return out


class _LigerNorm(torch.autograd.Function):
    """Liger's RMS norm: saves its input as it came and a factor a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *settings: Any) -> Tensor:
        factors = x.new_empty(x.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(x, weight, factors)
        ctx.in_place, ctx.num_settings = settings[3], len(settings)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, weight, _ = ctx.saved_tensors
        dx = grad if ctx.in_place else torch.empty_like(grad)
        return dx, torch.empty_like(weight), *[None] * ctx.num_settings


class _LigerGate(torch.autograd.Function):
    """Liger's silu(a) b: saves both, and writes their gradients over them."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, *settings: Any) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.num_settings = len(settings)
        return torch.empty_like(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.saved_tensors, *[None] * ctx.num_settings


_LIGER = {
    "liger_kernel.transformers.rms_norm.LigerRMSNormFunction": _LigerNorm,
    "liger_kernel.transformers.swiglu.LigerSiLUMulFunction": _LigerGate,
}

_REPLACED: dict[Device, tuple[tuple[Any, str, Any], ...]] = {
    "cpu": ((attention, "F", SimpleNamespace(scaled_dot_product_attention=_cpu_attention)),),
    "cuda": (
        (attention, "_grouped_sdpa", _flash_varlen),
        (delta_net, "packed_causal_conv", _fla_conv),
        (delta_net, "packed_gated_delta_rule", _fla_delta_rule),
    ),
}


class _Head(torch.autograd.Function):
    """The fused head: gradients are made in forward, backward hands them over."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, logits_bytes: int, summed: torch.dtype
    ) -> Tensor:
        ctx.dtype = weight.dtype
        logits = hidden.new_empty(logits_bytes, dtype=torch.uint8)
        dx = torch.empty_like(hidden)
        dw = torch.empty_like(weight, dtype=summed) if weight.requires_grad else None
        ctx.made = (dx, dw)
        del logits
        return hidden.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (dx, dw), ctx.made = ctx.made, None
        return dx, None if dw is None else dw.to(ctx.dtype), None, None


fused_head: Callable[[Tensor, Tensor, int, torch.dtype], Tensor] = _Head.apply
