"""Small head problems shared by the tests.

Shapes: `N tokens . D hidden . V vocab . R rows`.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polaris_kernels import LossRows, LossSpec, reference
from polaris_kernels.reference_selection import covariances
from polaris_kernels.spec import COVARIANCE_LOSSES


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


def strided(values: Tensor) -> Tensor:
    """The same (n,) values, two memory cells apart, nan (or a huge integer) between them."""
    other = torch.full_like(values, torch.nan if values.is_floating_point() else 2**40)
    return torch.stack((values, other), 1)[:, 0]


def grads(loss: Tensor, head: Head) -> tuple[Tensor, ...]:
    """Gradients by the leaves."""
    return torch.autograd.grad(loss, head.leaves)


def reference_loss(head: Head, rows: LossRows, spec: LossSpec) -> Tensor:
    """The oracle's scalar loss."""
    plain = head.plain()
    return reference.policy_loss(plain.logps, plain.entropy, rows, spec)


def selection_is_clear(head: Head, rows: LossRows, spec: LossSpec) -> bool:
    """False where rounding could decide which tokens a covariance loss or a quantile singles out.

    Two tokens always share one covariance, and a row of equal advantages has none.
    """
    kept = torch.ones(rows.row_of_token.shape, dtype=torch.bool)
    if rows.completion_mask is not None:
        kept = kept & (rows.completion_mask != 0)
    for off in (rows.is_human, None if rows.row_weight is None else rows.row_weight == 0):
        if off is not None:
            kept = kept & ~off[rows.row_of_token]
    with torch.no_grad():
        plain = head.to(torch.float64).plain()
    values = []
    if spec.top_entropy_quantile < 1.0:
        values.append(plain.entropy[kept])
    if spec.loss_type in COVARIANCE_LOSSES:
        per_row = rows.advantages.shape[0] == rows.num_rows
        A = rows.advantages[rows.row_of_token] if per_row else rows.advantages
        parts = covariances(plain.logps[kept].tolist(), A[kept].tolist())
        edges = [spec.clip_cov_lb, spec.clip_cov_ub] if spec.loss_type == "clip_cov" else []
        values.append(torch.tensor(parts + edges, dtype=torch.float64))
    return all(bool((v.sort().values.diff() > 1e-9).all()) for v in values)


def assert_close(ours: Tensor, exact: Tensor, tolerance: float = 1e-11, name: str = "") -> None:
    """Largest difference over the largest exact value."""
    ours, exact = ours.detach(), exact.detach()
    assert ours.shape == exact.shape
    scale = float(exact.abs().max().clamp(min=1.0)) if exact.numel() else 1.0
    worst = float((ours - exact).abs().max()) / scale if exact.numel() else 0.0
    assert worst <= tolerance, f"{name}: {worst:.3e} > {tolerance:.1e}"
