"""The native backend's pass over logits that exist: precision, rows nobody reads, autograd's guard.

Shapes: `B rows . L tokens . V vocab`.
"""

import pytest
import torch

from polaris_kernels import LossRows, LossSpec, grpo_loss, selective_logps
from polaris_kernels.backends import native_library
from polaris_kernels.testing import no_worse_than_torch

if not native_library.PATH.exists():
    pytest.skip(native_library.REBUILD, allow_module_level=True)

B, L, V = 3, 9, 1_003
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def inputs(dtype):
    g = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(B, L + 1, V, generator=g)).to(dtype)
    mask = torch.rand(B, L, generator=g) < 0.6
    return logits, torch.randint(V, (B, L), generator=g), mask


def mixed(logps, entropy, lse):
    weights = torch.linspace(-1, 1, logps.numel(), dtype=logps.dtype).view_as(logps)
    return (weights * logps + weights.square() * entropy - weights.sin() * lse).sum()


def plain(logits, targets):
    log_p = logits[:, :-1].div(0.8).log_softmax(-1)
    logp = log_p.gather(-1, targets[..., None])[..., 0]
    return logp, -(log_p.exp() * log_p).sum(-1), (logits[:, :-1] / 0.8).logsumexp(-1)


@pytest.mark.parametrize("inplace", [False, True], ids=["new_tensor", "inplace"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_no_further_from_float64_than_torch(dtype, inplace):
    logits, targets, _ = inputs(dtype)
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    exact_leaf = logits.double().requires_grad_()
    ours = selective_logps(
        leaves[0] * 1, targets, temperature=0.8, return_entropy=True, return_lse=True,
        inplace=inplace, backend="native",
    )  # fmt: skip
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    theirs, exact = plain(leaves[1].to(acc), targets), plain(exact_leaf, targets)
    for name, a, b, c in zip(("logp", "entropy", "lse"), ours, theirs, exact, strict=True):
        no_worse_than_torch(a, b, c, name=name)
    for out in (ours, theirs, exact):
        mixed(*out).backward()
    no_worse_than_torch(leaves[0].grad, leaves[1].grad, exact_leaf.grad, name="gradient")
    assert (leaves[0].grad[:, -1] == 0).all()


@pytest.mark.parametrize("inplace", [False, True], ids=["new_tensor", "inplace"])
def test_rows_that_no_loss_reads_may_hold_anything(inplace):
    logits, targets, mask = inputs(torch.float32)
    rows = LossRows.from_padded(mask=mask, advantages=torch.tensor([1.0, -0.5, 2.0]))
    results = []
    for filling in (0.0, torch.nan):
        held = logits.clone()
        held[:, :-1][~mask] = filling
        held[:, -1] = filling
        leaf = held.requires_grad_()
        out = grpo_loss(
            leaf * 1, targets, rows=rows, spec=LossSpec(), inplace=inplace, backend="native"
        )
        out.loss.backward()
        results.append((out.loss.detach(), out.logps, out.entropy, leaf.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    gradient = results[0][3]
    assert (gradient[:, :-1][~mask] == 0).all() and (gradient[:, -1] == 0).all()
    assert (gradient[:, :-1][mask].abs().sum(-1) > 0).all()


def test_autograd_refuses_others_who_need_overwritten_logits():
    logits, targets, _ = inputs(torch.float32)
    leaf = logits.requires_grad_()
    capped = torch.tanh(leaf)
    logps = selective_logps(capped, targets, inplace=True, backend="native").logps
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logps.sum().backward()


def test_columns_that_are_not_dense():
    logits, targets, _ = inputs(torch.float32)
    across = logits.transpose(1, 2).contiguous().transpose(1, 2)
    assert across.stride(-1) != 1
    for inplace in (False, True):
        found = []
        for layout in (logits, across):
            leaf = layout.clone().requires_grad_()
            selective_logps(
                leaf * 1, targets, inplace=inplace, backend="native"
            ).logps.sum().backward()
            found.append(leaf.grad)
        assert torch.equal(*found)
