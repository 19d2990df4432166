"""The three GEMMs of the head as vendor calls into memory that exists, with one rounding each.

On CUDA half operands are summed in fp32 and leave in the dtype of `out`. On a CPU (the
interpreter's tests) operands are cast to the accumulation dtype first.

Shapes: `C chunk . D hidden . V vocab`.
"""

import torch
from torch import Tensor

from ..problem import accumulation_dtype


def logits_into(hidden: Tensor, weight: Tensor, out: Tensor) -> None:
    """out (C, V) = hidden (C, D) @ weight (V, D).T."""
    _product_into(hidden, weight.t(), out)


def hidden_gradient_into(dz: Tensor, weight: Tensor, out: Tensor) -> None:
    """out (C, D) = dz (C, V) @ weight (V, D)."""
    _product_into(dz, weight, out)


def add_weight_gradient(dz: Tensor, hidden: Tensor, out: Tensor, *, first: bool) -> None:
    """out (V, D) += dz (C, V).T @ hidden (C, D); `first`: = instead, whatever `out` holds."""
    if first:
        _product_into(dz.t(), hidden, out)
    elif out.dtype == dz.dtype:
        out.addmm_(dz.t(), hidden)
    elif out.device.type == "cpu":
        out.addmm_(dz.t().to(out.dtype), hidden.to(out.dtype))
    else:
        torch.addmm(out, dz.t(), hidden, out_dtype=out.dtype, out=out)


def _product_into(a: Tensor, b: Tensor, out: Tensor) -> None:
    acc = accumulation_dtype(a.dtype)
    if out.device.type == "cpu":
        out.copy_(torch.mm(a.to(acc), b.to(acc)))
    elif out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif out.dtype == acc:
        torch.mm(a, b, out_dtype=acc, out=out)
    elif a.dtype == acc:
        out.copy_(torch.mm(a, b))
    else:
        out.copy_(torch.mm(a, b, out_dtype=acc))
