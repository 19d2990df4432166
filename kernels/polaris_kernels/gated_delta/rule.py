"""The gated delta rule over packed rows as one differentiable function on Triton kernels.

Shapes: `T packed tokens . H key heads . G value heads a key head . K, V head dims`.
"""

import os
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .row_chunks import RowChunks

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# a chunk of q and of k, and their gradients in fp32, stay on chip
MAX_KEY_DIM = 128
# elements, and bytes of an address: what Triton's compiler tells apart
_ALIGNED = 16


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, rows: RowChunks
) -> Tensor:
    """o = gated delta rule of every row on its own, from a zero state (arXiv 2412.06464, eq. 10):

        S_t = e^{g_t} (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
        o_t = S_t^T q_t                    q scaled to length 1 / sqrt(K), k to length 1

    Products run on tensor cores in the inputs' dtype (fp32 as three tf32 products), sums, states
    and decays in fp32. The same inputs give the same bits. Head dims that are no multiple of 16 are
    padded; strides and addresses that are none are copied.

    Args:
        q, k: (T, H, K) bf16, fp16 or fp32; K at most 128. Normalised here, with epsilon 1e-6.
        v: (T, H * G, V), same dtype; value heads h * G .. h * G + G - 1 read key head h.
        g: (T, H * G) log of the decay, at most 0; any floating dtype.
        beta: (T, H * G) write strength, 0 to 1; any floating dtype.
        rows: `RowChunks.from_lengths` of the rows, on the same device; one for all layers.
    Returns:
        (T, H * G, V) in v's dtype; differentiable once. No initial and no final states.
    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or tensors not on CUDA.
    """
    _check(q, k, v, g, beta, rows)
    width = v.shape[2]
    wide = [_padded(x) for x in (q, k, v)]
    out: Tensor = _GatedDeltaRule.apply(*wide, g, beta, rows, q.shape[2] ** -0.5)
    return out if out.shape[2] == width else out[..., :width]


class _GatedDeltaRule(torch.autograd.Function):
    """Keeps its inputs alone."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        rows: RowChunks,
        scale: float,
    ) -> Tensor:
        # Triton takes a second to import and reads its environment when it is
        from . import launch

        q, k, v = (_aligned(x) for x in (q, k, v))
        g, beta = (_adjacent(x) for x in (g, beta))
        ctx.save_for_backward(q, k, v, g, beta)
        ctx.rows, ctx.scale = rows, scale
        return launch.forward(launch.Inputs(q, k, v, g, beta, rows, scale))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        from . import launch

        q, k, v, g, beta = ctx.saved_tensors
        inputs = launch.Inputs(q, k, v, g, beta, ctx.rows, ctx.scale)
        return *launch.backward(inputs, _aligned(grad_out)), None, None


def _padded(x: Tensor) -> Tensor:
    """Head dims up to a multiple of 16 with zeros, which change nothing but lengths of loads."""
    missing = -x.shape[2] % _ALIGNED
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


def _aligned(x: Tensor) -> Tensor:
    """Strides and address of which the compiler sees that vectors may be loaded: with single
    elements a tile's addresses and masks fill the register file."""
    starts = (*x.stride()[:-1], x.data_ptr())
    if x.stride(-1) == 1 and not any(start % _ALIGNED for start in starts):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _adjacent(x: Tensor) -> Tensor:
    """Any strides but the last."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _check(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, rows: RowChunks) -> None:
    what = "gated_delta_rule"
    if q.ndim != 3 or k.shape != q.shape:
        raise ValueError(
            f"{what}: q and k must be (T, H, K), got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if v.ndim != 3 or len(v) != len(q) or not v.shape[1] or v.shape[1] % q.shape[1]:
        raise ValueError(
            f"{what}: v must be (T, H * G, V) with T and H of q {tuple(q.shape)}, got "
            f"{tuple(v.shape)}"
        )
    if q.shape[2] > MAX_KEY_DIM:
        raise ValueError(f"{what}: K must be at most {MAX_KEY_DIM}, got {q.shape[2]}")
    for name, x in (("g", g), ("beta", beta)):
        if x.shape != v.shape[:2]:
            raise ValueError(
                f"{what}: {name} must be (T, H * G) = {tuple(v.shape[:2])}, got {tuple(x.shape)}"
            )
    if rows.num_tokens != len(q):
        raise ValueError(f"{what}: rows hold {rows.num_tokens} tokens, q has {len(q)}")
    if q.dtype not in _DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"{what}: q, k and v must share one of bf16, fp16 and fp32, got {q.dtype}, {k.dtype} "
            f"and {v.dtype}"
        )
    if q.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"{what}: the kernels need CUDA tensors, got CPU ones; move them, or set "
            "TRITON_INTERPRET=1 before Triton is imported to run its interpreter"
        )
    found = {x.device for x in (q, k, v, g, beta, rows.first)}
    if len(found) > 1:
        raise ValueError(f"{what}: tensors on several devices: {sorted(map(str, found))}")
