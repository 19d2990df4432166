"""A temperature under the mask is like anything else there: it may be 0 (padding) or nan.

On the CPU tokens without loss are gathered away; here they stay, as where finding them would make
the host wait for the device.

Shapes: `N tokens . D hidden . V vocab`.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from polaris_kernels import (
    LossSpec,
    grpo_loss,
    linear_grpo_loss,
    linear_kl_loss,
    problem,
)
from polaris_kernels import logits as logits_module
from polaris_kernels import rows as rows_module

from .cases import assert_close, make_head, make_rows

N, D, V = 14, 6, 37
SPEC = LossSpec(beta=0.1, entropy_coef=0.05)


def of_head(temperature: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
    head = make_head(N, D, V, bias=True)
    out = linear_grpo_loss(
        head.hidden, head.weight, head.targets, bias=head.bias, rows=make_rows(head, 4), spec=SPEC,
        temperature=temperature,
    )  # fmt: skip
    return out, head.leaves


def of_capped_head(temperature: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
    head = make_head(N, D, V)
    out = linear_grpo_loss(
        head.hidden, head.weight, head.targets, rows=make_rows(head, 4), spec=SPEC, softcap=5.0,
        temperature=temperature,
    )  # fmt: skip
    return out, head.leaves


def of_logits(temperature: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
    head = make_head(N, D, V)
    given = (head.hidden @ head.weight.t()).detach().requires_grad_()
    out = grpo_loss(
        given, head.targets, rows=make_rows(head, 4), spec=SPEC, temperature=temperature
    )
    return out, (given,)


def of_exact_kl(temperature: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
    head, ref = make_head(N, D, V), make_head(N, D, V, seed=5)
    out = linear_kl_loss(
        head.hidden, head.weight, ref.hidden, ref.weight, rows=make_rows(head, 4),
        temperature=temperature,
    )  # fmt: skip
    return out, head.leaves


@pytest.mark.parametrize("junk", [0.0, torch.nan, -1.0])
@pytest.mark.parametrize("function", [of_head, of_capped_head, of_logits, of_exact_kl])
def test_a_temperature_under_the_mask_never_matters(every_backend, function, junk, monkeypatch):
    if function is of_exact_kl and every_backend != "torch":
        pytest.skip("the exact KL has no backends")
    clean = torch.linspace(0.5, 1.5, N, dtype=torch.float64)
    expected, leaves = function(clean)
    expected_grads = torch.autograd.grad(expected.loss, leaves)
    # a device's numbers are not looked at
    monkeypatch.setattr(rows_module, "_is_host_memory", lambda value: False)
    for module in (problem, logits_module):
        monkeypatch.setattr(module, "check_above_zero", lambda temperature, caller: None)
    off = ~make_rows(make_head(N, D, V), 4).completion_mask
    out, leaves = function(clean.masked_fill(off, junk))
    assert_close(out.loss, expected.loss)
    for found, exact in zip(torch.autograd.grad(out.loss, leaves), expected_grads, strict=True):
        assert_close(found, exact)
    for name, value in expected.metrics.items():
        assert_close(out.metrics[name], value, name=name)
