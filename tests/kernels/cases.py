"""Small head problems shared by the tests.

Shapes: `N tokens . D hidden . V vocab . R rows`.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polaris_kernels import LossRows, LossSpec, reference


@dataclass(frozen=True)
class Head:
    """Leaves of one head problem, with the options that go with them."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    options: dict[str, Any]

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """Tensors that take a gradient."""
        return tuple(x for x in (self.hidden, self.weight, self.bias) if x is not None)

    def to(self, dtype: torch.dtype) -> "Head":
        """Fresh leaves of another dtype."""
        hidden, weight = (x.detach().to(dtype).requires_grad_() for x in (self.hidden, self.weight))
        bias = None if self.bias is None else self.bias.detach().to(dtype).requires_grad_()
        return Head(hidden, weight, bias, self.targets, self.options)

    def plain(self) -> reference.ReferenceLogps:
        """The reference's log-probs, in the leaves' dtype."""
        z = reference.logits(self.hidden, self.weight, bias=self.bias, **self.options)
        return reference.token_logps(z, self.targets)


def make_head(
    N: int = 40,
    D: int = 8,
    V: int = 33,
    *,
    bias: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    scale: float = 1.0,
    **options: Any,
) -> Head:
    """Random leaves; `scale` 20 gives a peaked softmax."""
    g = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(N, D, generator=g, dtype=torch.float64) * scale).to(dtype)
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).to(dtype)
    b = torch.randn(V, generator=g, dtype=torch.float64).to(dtype) if bias else None
    targets = torch.randint(V, (N,), generator=g)
    for leaf in (hidden, weight, b):
        if leaf is not None:
            leaf.requires_grad_()
    return Head(hidden, weight, b, targets, options)


def make_rows(head: Head, R: int = 6, *, seed: int = 0, spread: float = 0.3) -> LossRows:
    """Rows of uneven length with every optional input; ratios mostly in [.5, 2]."""
    g = torch.Generator().manual_seed(seed + 1)
    N = head.targets.shape[0]

    def noise(n: int) -> Tensor:
        return torch.randn(n, generator=g, dtype=torch.float64)

    with torch.no_grad():
        logps = head.to(torch.float64).plain().logps
    return LossRows(
        row_of_token=torch.randint(R, (N,), generator=g).sort().values,
        num_rows=R,
        advantages=noise(R),
        completion_mask=torch.rand(N, generator=g) > 0.2,
        old_logps=logps + spread * noise(N),
        ref_logps=logps + spread * noise(N),
        rollout_logps=logps + spread * noise(N),
        is_human=torch.arange(R) % 3 == 2,
    )


def as_float32(rows: LossRows) -> LossRows:
    """The rows as a trainer has them."""
    names = ("advantages", "old_logps", "ref_logps", "rollout_logps")
    return replace(rows, **{n: getattr(rows, n).float() for n in names})


def grads(loss: Tensor, head: Head) -> tuple[Tensor, ...]:
    """Gradients by the leaves."""
    return torch.autograd.grad(loss, head.leaves)


def reference_loss(head: Head, rows: LossRows, spec: LossSpec) -> Tensor:
    """The oracle's scalar loss."""
    plain = head.plain()
    return reference.policy_loss(plain.logps, plain.entropy, rows, spec)


def assert_close(ours: Tensor, exact: Tensor, tolerance: float = 1e-11, name: str = "") -> None:
    """Largest difference over the largest exact value."""
    ours, exact = ours.detach(), exact.detach()
    assert ours.shape == exact.shape
    scale = float(exact.abs().max().clamp(min=1.0)) if exact.numel() else 1.0
    worst = float((ours - exact).abs().max()) / scale if exact.numel() else 0.0
    assert worst <= tolerance, f"{name}: {worst:.3e} > {tolerance:.1e}"
