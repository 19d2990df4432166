"""Ids that cannot be sampled have a logit (or a bias) of -inf: results and gradients are those of
the vocabulary without them, and theirs is 0.

Shapes: `N tokens . D hidden . V vocab`.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from polaris_kernels import (
    LossSpec,
    TokenView,
    grpo_loss,
    linear_grpo_loss,
    linear_logps,
    selective_logps,
)
from polaris_kernels import rows as rows_module
from polaris_kernels.backends import native

from .cases import as_float32, make_head, make_rows

pytestmark = pytest.mark.usefixtures("every_backend")

N, D, V = 14, 6, 208
SPEC = LossSpec(beta=0.1, entropy_coef=0.05)
# whole vectors, whole tiles, the first and the last id, and one here and there
BANNED = torch.zeros(V, dtype=torch.bool).index_fill_(
    0, torch.tensor([0, *range(8, 61), 77, *range(100, 104), *range(150, 170), V - 1]), True
)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
REST = (~BANNED).nonzero().squeeze(1)


def targets_of(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids that may be sampled: their place in the whole vocabulary, and among those."""
    g = torch.Generator().manual_seed(seed)
    place = torch.randint(REST.numel(), (N,), generator=g)
    return REST[place], place


@pytest.mark.parametrize("inplace", [False, True], ids=["new_tensor", "inplace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_logits_of_minus_infinity(dtype, inplace):
    g = torch.Generator().manual_seed(1)
    values = (3 * torch.randn(N, V, generator=g)).to(dtype)
    targets, place = targets_of()
    ours = values.masked_fill(BANNED, -torch.inf).requires_grad_()
    theirs = values[:, REST].double().requires_grad_()
    found = selective_logps(
        ours * 1, targets, temperature=0.8, inplace=inplace, return_entropy=True, return_lse=True
    )
    log_p = (theirs / 0.8).log_softmax(1)
    exact = (
        log_p.gather(1, place[:, None])[:, 0],
        -(log_p.exp() * log_p).sum(1),
        (theirs / 0.8).logsumexp(1),
    )
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b, **CLOSE)
    weights = torch.randn(3, N, generator=g).double()
    for names in ((0,), (0, 1, 2)):
        a, b = (
            sum((weights[i].to(part[i].dtype) * part[i]).sum() for i in names)
            for part in (found, exact)
        )
        if inplace and len(names) == 1:
            continue  # its backward writes over the logits that the next one reads
        (mine,) = torch.autograd.grad(a, ours, retain_graph=True)
        (expected,) = torch.autograd.grad(b, theirs, retain_graph=True)
        assert (mine[:, BANNED] == 0).all()
        rough = {"rtol": 2e-2, "atol": 2e-3} if dtype == torch.bfloat16 else CLOSE
        torch.testing.assert_close(mine[:, REST].double(), expected, **rough)


def test_a_loss_with_an_entropy_bonus_from_such_logits():
    targets, place = targets_of()
    head = replace(make_head(N, D, V, dtype=torch.float32, scale=0.3), targets=targets)
    rows = as_float32(make_rows(head, 4))
    values = (head.hidden @ head.weight.t()).detach()
    ours = values.masked_fill(BANNED, -torch.inf).requires_grad_()
    theirs = values[:, REST].requires_grad_()
    a = grpo_loss(ours, targets, rows=rows, spec=SPEC)
    b = grpo_loss(theirs, place, rows=rows, spec=SPEC, backend="torch")
    torch.testing.assert_close(a.loss, b.loss, **CLOSE)
    (mine,), (expected,) = (
        torch.autograd.grad(x, y) for x, y in ((a.loss, ours), (b.loss, theirs))
    )
    assert (mine[:, BANNED] == 0).all()
    torch.testing.assert_close(mine[:, REST], expected, **CLOSE)


@pytest.mark.parametrize("chunk_bytes", [None, 208 * 4 * 5], ids=["one_chunk", "chunks"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "logit_scale": 1.3}], ids=str)
def test_a_bias_of_minus_infinity(chunk_bytes, options, monkeypatch):
    from polaris_kernels.backends import chunks

    # tiles of the vocabulary that hold nothing but banned ids
    monkeypatch.setattr(chunks, "_STREAM_COLUMNS", 16)
    monkeypatch.setattr(native, "_TILE_COLUMNS", 16)
    targets, place = targets_of()
    head = replace(make_head(N, D, V, dtype=torch.float32, scale=0.3), targets=targets)
    rows = as_float32(make_rows(head, 4))
    bias = torch.zeros(V).masked_fill_(BANNED, -torch.inf)
    rest = head.weight.detach()[REST].requires_grad_()
    results = []
    for weight, ids, b, backend in (
        (head.weight, targets, bias, None), (rest, place, None, "torch"),
    ):  # fmt: skip
        given = {"bias": b, "chunk_bytes": chunk_bytes, "backend": backend, **options}
        loss = linear_grpo_loss(head.hidden, weight, ids, rows=rows, spec=SPEC, **given).loss
        out = linear_logps(head.hidden, weight, ids, return_entropy=True, **given)
        total = out.logps.sum() + 0.3 * out.entropy.sum()
        frozen = linear_logps(head.hidden, weight.detach(), ids, return_entropy=True, **given)
        kept = frozen.logps.sum() + 0.3 * frozen.entropy.sum()
        results.append((
            [loss, out.logps, out.entropy, *torch.autograd.grad(kept, head.hidden)],
            *(torch.autograd.grad(x, (head.hidden, weight)) for x in (loss, total)),
        ))  # fmt: skip
    (values, *ours), (exact, *theirs) = results
    for a, b in zip(values, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for (d_hidden, d_weight), (expected, d_rest) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(d_hidden, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(d_weight[REST], d_rest, rtol=1e-4, atol=1e-4)
        assert (d_weight[BANNED] == 0).all()


@pytest.mark.parametrize("banned", [-torch.inf, -1e4], ids=str)
@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "gspo", "dro", "callback"])
def test_banned_ids_under_the_mask_never_matter(loss_type, banned, monkeypatch):
    # a token without loss that stays among the others has id 0 for its target, a banned one
    targets, _ = targets_of()
    head = replace(make_head(N, D, V, dtype=torch.float32, scale=0.3), targets=targets)
    rows = as_float32(make_rows(head, 4))
    off = ~rows.completion_mask
    assert off.any()
    bias = torch.zeros(V).masked_fill_(BANNED, banned)

    def squared_distance(logps: Tensor, entropy: Tensor, tokens: TokenView) -> Tensor:
        assert logps.isfinite().all()
        # 0 / 0 under the mask
        return (logps - tokens.old_logps).square() + 1e-3 * (logps / tokens.old_logps)

    if loss_type == "callback":
        kind = {"loss_fn": squared_distance}
    else:
        high = {"epsilon_high": 5.0} if loss_type == "cispo" else {}
        kind = {"spec": replace(SPEC, loss_type=loss_type, **high)}
    results = []
    for in_place in (False, True):
        if in_place:
            monkeypatch.setattr(rows_module, "_is_host_memory", lambda value: False)
        out = linear_grpo_loss(
            head.hidden, head.weight, targets, rows=rows, bias=bias, **kind,
            backend=None if in_place else "torch",
        )  # fmt: skip
        results.append((out, torch.autograd.grad(out.loss, (head.hidden, head.weight))))
    (expected, expected_grads), (out, found) = results
    torch.testing.assert_close(out.loss, expected.loss, **CLOSE)
    for a, b in zip(found, expected_grads, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    assert (out.logps[off] == 0).all() and (out.entropy[off] == 0).all()
    for name, value in expected.metrics.items():
        torch.testing.assert_close(out.metrics[name], value, **CLOSE, msg=name)


def test_nan_among_them_stays_loud():
    targets, _ = targets_of()
    logits = torch.randn(N, V).masked_fill(BANNED, -torch.inf)
    logits[3, 90] = torch.nan
    logits.requires_grad_()
    out = selective_logps(logits, targets, return_entropy=True)
    bad = torch.arange(N) == 3
    assert torch.equal(out.logps.isnan(), bad) and torch.equal(out.entropy.isnan(), bad)
    (gradient,) = torch.autograd.grad((out.logps + out.entropy).sum(), logits)
    assert torch.equal(gradient.isnan().any(1), bad)


def test_a_target_that_cannot_be_sampled_has_probability_0():
    logits = torch.randn(N, V).masked_fill(BANNED, -torch.inf)
    targets = torch.where(torch.arange(N) == 5, 10, targets_of()[0])
    out = selective_logps(logits, targets, return_entropy=True)
    assert torch.equal(out.logps == -torch.inf, torch.arange(N) == 5)
    assert out.entropy.isfinite().all()
