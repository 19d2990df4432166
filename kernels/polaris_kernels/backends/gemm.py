"""The three GEMMs of the head, for each device and dtype, with fp32 (or fp64) results.

On a CPU, bf16 and fp16 operands are cast to fp32 tile by tile over the vocabulary: torch's own
half GEMM gives rounded logits, and is far slower than the cast on CPUs without AMX.

Shapes: `C chunk . D hidden . V vocab`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# fp32 elements of a cast weight tile
_TILE_ELEMENTS = 2**22


def logits_into(hidden: Tensor, weight: Tensor, out: Tensor) -> None:
    """out (C, V) = hidden (C, D) @ weight (V, D).T, in out's dtype."""
    if weight.dtype == out.dtype:
        torch.mm(hidden.to(out.dtype), weight.t(), out=out)
    elif weight.device.type == "cpu":
        wide = hidden.to(out.dtype)
        for tile in _tiles(weight):
            torch.mm(wide, weight[tile].to(out.dtype).t(), out=out[:, tile])
    else:
        torch.mm(hidden, weight.t(), out_dtype=out.dtype, out=out)


def hidden_gradient(dz: Tensor, weight: Tensor) -> Tensor:
    """(C, D) = dz (C, V) @ weight (V, D), summed in dz's dtype."""
    if weight.dtype == dz.dtype:
        return torch.mm(dz, weight)
    if weight.device.type != "cpu":
        return torch.mm(dz.to(weight.dtype), weight, out_dtype=dz.dtype)
    total = dz.new_zeros(dz.shape[0], weight.shape[1])
    for tile in _tiles(weight):
        total.addmm_(dz[:, tile], weight[tile].to(dz.dtype))
    return total


def add_weight_gradient(total: Tensor | None, dz: Tensor, hidden: Tensor) -> Tensor:
    """(V, D) = total + dz (C, V).T @ hidden (C, D), summed in dz's dtype; total None: zero."""
    if hidden.dtype != dz.dtype and dz.device.type != "cpu":
        narrow = dz.to(hidden.dtype)
        if total is None:
            return torch.mm(narrow.t(), hidden, out_dtype=dz.dtype)
        return torch.addmm(total, narrow.t(), hidden, out_dtype=dz.dtype, out=total)
    hidden = hidden.to(dz.dtype)
    if total is None:
        return torch.mm(dz.t(), hidden)
    return total.addmm_(dz.t(), hidden)


def _tiles(weight: Tensor) -> Iterator[slice]:
    V, D = weight.shape
    rows = max(1, _TILE_ELEMENTS // max(D, 1))
    return (slice(i, min(i + rows, V)) for i in range(0, V, rows))
