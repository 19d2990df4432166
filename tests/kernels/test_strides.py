"""Vectors that are not dense in memory: a column of a table, one number seen V times.

Shapes: `N tokens . D hidden . V vocab`.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from polaris_kernels import (
    LossSpec,
    grpo_loss,
    linear_grpo_loss,
    linear_logps,
)

from .cases import as_float32, make_head, make_rows, strided

N, D, V = 14, 6, 37
SPEC = LossSpec(beta=0.1, entropy_coef=0.05)


pytestmark = pytest.mark.usefixtures("every_backend")


def outputs(bias: Tensor) -> list[Tensor]:
    """Results and gradients of a loss, and of log-probs of a trained and of a frozen head."""
    head = make_head(N, D, V, dtype=torch.float32)
    rows = as_float32(make_rows(head, 4))
    out = linear_grpo_loss(head.hidden, head.weight, head.targets, rows=rows, bias=bias, spec=SPEC)
    found = [out.loss, out.entropy, *torch.autograd.grad(out.loss, (*head.leaves, bias))]
    for weight, leaves in ((head.weight, head.leaves), (head.weight.detach(), [head.hidden])):
        logps = linear_logps(head.hidden, weight, head.targets, bias=bias, return_entropy=True)
        found += [logps.logps, *torch.autograd.grad(logps.logps.square().sum(), leaves)]
    return found


@pytest.mark.parametrize("form", ["column", "expanded"])
def test_a_bias_may_have_any_strides(form):
    values = torch.randn(V, generator=torch.Generator().manual_seed(0))
    if form == "expanded":
        # one number, and behind it what must not be read
        values = torch.tensor([2.0, *[torch.nan] * V])[:1].expand(V)
    given = strided(values) if form == "column" else values
    assert given.stride() != (1,)
    expected = outputs(values.clone().contiguous().requires_grad_())
    for a, b in zip(outputs(given.requires_grad_()), expected, strict=True):
        assert torch.equal(a, b)


def test_positions_may_be_a_column_of_a_table():
    head = make_head(N, D, V, dtype=torch.float32)
    rows = as_float32(make_rows(head, 4))
    index = rows.completion_mask.nonzero().squeeze(1)
    results = []
    for given in (index, strided(index)):
        logits = (head.hidden @ head.weight.t()).detach().requires_grad_()
        out = grpo_loss(logits, head.targets, rows=replace(rows, token_index=given), spec=SPEC)
        results.append((out.loss, out.logps, *torch.autograd.grad(out.loss, logits)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_temperatures_and_targets_may_have_any_strides():
    head = make_head(N, D, V, dtype=torch.float32)
    rows = as_float32(make_rows(head, 4))
    temperature = torch.linspace(0.5, 1.5, N)
    results = []
    for change in (torch.clone, strided):
        given = {"rows": rows, "spec": SPEC, "temperature": change(temperature)}
        out = linear_grpo_loss(head.hidden, head.weight, change(head.targets), **given)
        logits = (head.hidden @ head.weight.t()).detach().requires_grad_()
        other = grpo_loss(logits, change(head.targets), **given)
        results.append([
            out.loss, *torch.autograd.grad(out.loss, head.leaves),
            other.loss, *torch.autograd.grad(other.loss, logits),
        ])  # fmt: skip
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
