"""Helpers for tests of numerics: is a fused result as good as plain torch in the same dtype?"""

import torch
from torch import Tensor

# accumulation order differs between any two implementations: errors below this share of the
# dtype's unit are noise, not worse numerics
_FREE_UNITS = 4.0


def error_sizes(value: Tensor, exact: Tensor) -> tuple[float, float]:
    """(largest, root mean square) of |value - exact|, both over the largest |exact|."""
    value, exact = value.detach(), exact.detach()
    scale = float(exact.abs().max().clamp(min=1e-30)) if exact.numel() else 1.0
    difference = (value.double() - exact.double()).abs() / scale
    if not difference.numel():
        return 0.0, 0.0
    return float(difference.max()), float(difference.square().mean().sqrt())


def no_worse_than_torch(
    value: Tensor, plain: Tensor, exact: Tensor, *, name: str = "value", factor: float = 2.0
) -> None:
    """Assert that `value` is at most `factor` times as far from `exact` as `plain` is.

    Args:
        value: the result under test.
        plain: the same maths in plain torch, in the dtype under test.
        exact: the same in float64, of the same shape.
        name: for the message.
        factor: allowed multiple of plain torch's error, for the maximum and for the RMS.
    """
    if value.shape != exact.shape or plain.shape != exact.shape:
        raise AssertionError(
            f"{name}: shapes differ: {tuple(value.shape)}, {tuple(plain.shape)}, "
            f"{tuple(exact.shape)}"
        )
    if not torch.isfinite(value).all():
        raise AssertionError(f"{name}: not finite")
    noise = _FREE_UNITS * torch.finfo(plain.dtype).eps
    for kind, ours, theirs in zip(
        ("max", "rms"), error_sizes(value, exact), error_sizes(plain, exact), strict=True
    ):
        if ours > factor * theirs + noise:
            raise AssertionError(
                f"{name}: {kind} error {ours:.3e} against plain torch's {theirs:.3e} "
                f"(allowed: {factor} times + {noise:.1e})"
            )
