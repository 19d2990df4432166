"""Launching the row kernels: block sizes, flags, and the tensors they share.

Shapes: `C rows of logits . V vocab`.
"""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..objective import TokenGradients
from ..problem import accumulation_dtype
from .base import Statistics
from .triton_rows import row_gradient_kernel, row_statistics_kernel

# threads of a program: small programs fill the register file (bf16 statistics on sm_90: 64
# registers, 32 warps a multiprocessor; with 256 threads 94 and 16). Not yet timed on a GPU.
THREADS = 128
_WARP = 32
# bytes of one vector load
_LOAD_BYTES = 16
# logits a thread holds at a time: 32 for statistics, where one maximum serves them all; 16 for the
# gradient, whose threads also hold what they are about to write
_STATISTICS_ITEMS = 32
_GRADIENT_ITEMS = 16

# Triton warns where this is left to its default
_FUSED = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class RowShape:
    """Block sizes of the kernels, from the width and the dtype of the rows alone."""

    items: int
    lanes: int
    block: int
    num_warps: int

    @classmethod
    def of(cls, width: int, element_size: int) -> "RowShape":
        """Block sizes for rows of `width` elements."""
        per_load = max(1, _LOAD_BYTES // element_size)
        ceiling = _power_of_two(width)
        lanes = min(THREADS * per_load, ceiling)
        return cls(
            items=min(_STATISTICS_ITEMS // per_load, max(1, ceiling // lanes)),
            lanes=lanes,
            block=min(THREADS * _GRADIENT_ITEMS, ceiling),
            num_warps=max(1, min(THREADS, lanes // per_load) // _WARP),
        )


@dataclass(frozen=True)
class Scaling:
    """How raw logits become z, for all rows of a call."""

    scale: float | Tensor
    """z = scale * v: logit_scale / temperature, or softcap / temperature; or (C,) acc dtype"""
    flips: bool = False
    """scale is below 0"""
    cap_scale: float | None = None
    """v = tanh(cap_scale * s); None: v = s"""
    bias: Tensor | None = None
    """(V,) acc dtype"""
    rounds: bool = False
    """round s to bf16"""

    @classmethod
    def make(
        cls,
        temperature: float | Tensor,
        *,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        bias: Tensor | None = None,
        rounds: bool = False,
    ) -> "Scaling":
        """The scaling of a head problem; temperature a number or (C,)."""
        numerator = logit_scale if softcap is None else softcap
        scale = numerator / temperature
        return cls(
            scale=scale.contiguous() if isinstance(scale, Tensor) else scale,
            flips=numerator < 0,
            cap_scale=None if softcap is None else logit_scale / softcap,
            bias=bias,
            rounds=rounds,
        )

    def __getitem__(self, rows: slice) -> "Scaling":
        scale = self.scale[rows] if isinstance(self.scale, Tensor) else self.scale
        return replace(self, scale=scale)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of both kernels."""
        per_row = isinstance(self.scale, Tensor)
        return {
            "bias_ptr": self.bias,
            "scale_ptr": self.scale if per_row else None,
            "scale": 1.0 if per_row else float(self.scale),
            "cap_scale": self.cap_scale or 0.0,
            "HAS_BIAS": self.bias is not None,
            "HAS_SCALE": per_row,
            "ROUNDS": self.rounds,
            "HAS_CAP": self.cap_scale is not None,
            "FLIPS": self.flips,
        }


@dataclass(frozen=True)
class RowState:
    """What the statistics kernel leaves behind, (C,) each, acc dtype."""

    logp: Tensor
    entropy: Tensor
    lse: Tensor
    shift: Tensor
    total: Tensor

    @classmethod
    def empty(cls, num_rows: int, like: Tensor) -> "RowState":
        """Unwritten state, on the device of `like` and in its accumulation dtype."""
        dtype = accumulation_dtype(like.dtype)
        # memory of their own: autograd and FSDP2 treat results that are views as second-class
        return cls(*(like.new_empty(num_rows, dtype=dtype) for _ in range(5)))

    def __getitem__(self, rows: slice) -> "RowState":
        return RowState(
            self.logp[rows],
            self.entropy[rows],
            self.lse[rows],
            self.shift[rows],
            self.total[rows],
        )

    @property
    def statistics(self) -> Statistics:
        """The part that callers see."""
        return Statistics(logp=self.logp, entropy=self.entropy, lse=self.lse)


def check_device(device: torch.device) -> None:
    """ValueError where Triton cannot run on `device`."""
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "polaris_kernels: the triton backend needs CUDA tensors, got CPU ones; leave `backend` "
            "out there, or set TRITON_INTERPRET=1 before Triton is imported to run its interpreter"
        )


def row_statistics(
    logits: Tensor, targets: Tensor, scaling: Scaling, out: RowState, kept: Tensor | None = None
) -> None:
    """Fill `out` from logits (C, V), rows any distance apart.

    Args:
        targets: (C,) int64.
        kept: (C,); rows with 0 are not read.
    """
    C, V = logits.shape
    if not C:
        return
    shape = RowShape.of(V, logits.element_size())
    with torch.cuda.device_of(logits):
        row_statistics_kernel[(C,)](
            logits_ptr=logits,
            stride_row=logits.stride(0),
            targets_ptr=targets.contiguous(),
            kept_ptr=kept,
            logp_ptr=out.logp,
            entropy_ptr=out.entropy,
            lse_ptr=out.lse,
            shift_ptr=out.shift,
            sum_ptr=out.total,
            V=V,
            HAS_KEPT=kept is not None,
            ITEMS=shape.items,
            LANES=shape.lanes,
            num_warps=shape.num_warps,
            **scaling.arguments(),
            **_FUSED,
        )


def row_gradients(
    logits: Tensor,
    targets: Tensor,
    scaling: Scaling,
    state: RowState,
    gradients: TokenGradients,
    out: Tensor,
    index: Tensor | None = None,
) -> None:
    """out (C, V) = d loss / d raw logits.

    Args:
        logits: (C, V), what `state` was made from.
        gradients: (C,) each.
        out: `logits`, other memory, or `narrow_view(logits)`.
        index: (K,) int64 rows to compute; `out` is (K, V) of other memory then.
    """
    rows, V = out.shape
    if not rows:
        return
    acc = state.logp.dtype
    shape = RowShape.of(V, logits.element_size())
    parts = (gradients.logp, gradients.entropy, gradients.lse)
    g_logp, g_entropy, g_lse = (
        None if part is None else part.to(acc).contiguous() for part in parts
    )
    with torch.cuda.device_of(logits):
        row_gradient_kernel[(rows,)](
            logits_ptr=logits,
            stride_row=logits.stride(0),
            out_ptr=out,
            stride_out=out.stride(0),
            targets_ptr=targets.contiguous(),
            index_ptr=index,
            g_logp_ptr=g_logp,
            g_entropy_ptr=g_entropy,
            g_lse_ptr=g_lse,
            entropy_ptr=state.entropy,
            shift_ptr=state.shift,
            sum_ptr=state.total,
            V=V,
            HAS_INDEX=index is not None,
            HAS_LOGP=g_logp is not None,
            HAS_ENTROPY=g_entropy is not None,
            HAS_LSE=g_lse is not None,
            NARROWS=out.data_ptr() == logits.data_ptr() and out.dtype != logits.dtype,
            BLOCK=shape.block,
            num_warps=shape.num_warps,
            **scaling.arguments(),
            **_FUSED,
        )


def padded_width(width: int) -> int:
    """Row stride that keeps every row at a multiple of 16 elements, for full-width loads."""
    return -(-width // 16) * 16


def narrow_view(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """(C, V) of `dtype` in the first bytes of each row of `logits` (C, V), rows as they lie."""
    if dtype == logits.dtype:
        return logits
    C, V = logits.shape
    ratio = logits.element_size() // dtype.itemsize
    rows = logits.as_strided((C, logits.stride(0)), (logits.stride(0), 1))
    return rows.view(dtype).as_strided((C, V), (logits.stride(0) * ratio, 1))


def _power_of_two(value: int) -> int:
    return 1 << max(0, value - 1).bit_length()
