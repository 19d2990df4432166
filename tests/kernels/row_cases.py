"""Rows of logits shared by the tests of the row kernels, and the same maths in plain torch.

Shapes: `C rows . V vocab`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polaris_kernels.objective import TokenGradients

PARTS = ("logp", "entropy", "lse")


@dataclass(frozen=True)
class Rows:
    """Raw logits with targets, gradients of the three outputs, and how logits become z."""

    logits: Tensor
    targets: Tensor
    gradients: TokenGradients
    options: dict[str, Any]


def make_rows(
    C: int, V: int, dtype: torch.dtype, *, spread: float = 3.0, offset: float = 0.0,
    parts: tuple[str, ...] = PARTS, per_row: bool = False, bias: bool = False, **options: Any,
) -> Rows:  # fmt: skip
    g = torch.Generator().manual_seed(C * 1000 + V)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    acc = torch.float64 if dtype == torch.float64 else torch.float32
    if per_row:
        options["temperature"] = torch.linspace(0.5, 1.5, C, dtype=acc)
    if bias:
        options["bias"] = normal(V).to(acc)
    return Rows(
        logits=(normal(C, V) * spread + offset).to(dtype),
        targets=torch.randint(V, (C,), generator=g),
        gradients=TokenGradients(**{p: normal(C).to(acc) if p in parts else None for p in PARTS}),
        options={"temperature": 1.0} | options,
    )


def plain(rows: Rows, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """The three outputs and the gradient, in plain torch of `dtype`."""
    options = rows.options
    leaf = rows.logits.to(dtype).requires_grad_()
    s = leaf if options.get("bias") is None else leaf + options["bias"].to(dtype)
    if options.get("rounds"):
        # rounding a sum of float64 could go the other way
        raw = rows.logits + options["bias"]
        s = s + (raw.bfloat16().to(dtype) - s.detach())
    u = s * options.get("logit_scale", 1.0)
    if options.get("softcap") is not None:
        u = options["softcap"] * torch.tanh(u / options["softcap"])
    T = options["temperature"]
    z = u / (T.to(dtype)[:, None] if isinstance(T, Tensor) else T)
    log_p = z.log_softmax(-1)
    outputs = [
        log_p.gather(1, rows.targets[:, None])[:, 0],
        -(log_p.exp() * log_p).sum(-1),
        z.logsumexp(-1),
    ]
    given = [getattr(rows.gradients, p) for p in PARTS]
    loss = sum(
        (o * g.to(dtype)).sum() for o, g in zip(outputs, given, strict=True) if g is not None
    )
    (gradient,) = torch.autograd.grad(loss, leaf)
    return [o.detach() for o in outputs], gradient
