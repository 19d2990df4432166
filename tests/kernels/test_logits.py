"""The logits-level API equals the hidden-level one, in place or not."""

from dataclasses import replace

import pytest
import torch

from polaris_kernels import LossRows, LossSpec, grpo_loss, linear_grpo_loss, selective_logps
from polaris_kernels.testing import no_worse_than_torch

from .cases import assert_close, make_head, make_rows, reference_loss

N, V = 40, 33
EVERYTHING = {"return_entropy": True, "return_lse": True}


def make_logits(*shape, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()


def plain_outputs(logits, targets, temperature=1.0):
    log_p = (logits / temperature).log_softmax(-1)
    return (
        log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1),
        -(log_p.exp() * log_p).sum(-1),
        (logits / temperature).logsumexp(-1),
    )


def mixed(outputs):
    g = torch.Generator().manual_seed(5)
    return sum((x * torch.randn(x.shape, generator=g, dtype=x.dtype)).sum() for x in outputs)


@pytest.mark.parametrize("inplace", [False, True], ids=["new_tensor", "inplace"])
@pytest.mark.parametrize("layout", ["packed", "padded", "one_more"])
@pytest.mark.parametrize("temperature", [1.0, 0.7, "per_token"])
def test_log_probs_and_gradients(layout, temperature, inplace):
    shape = (N,) if layout == "packed" else (5, 8)
    lead = (5, 9) if layout == "one_more" else shape
    logits = make_logits(*lead, V)
    targets = torch.randint(V, shape, generator=torch.Generator().manual_seed(2))
    used = logits[:, :-1] if layout == "one_more" else logits
    divisor = temperature
    if temperature == "per_token":
        temperature = torch.linspace(0.5, 1.5, N, dtype=torch.float64).view(shape)
        divisor = temperature.unsqueeze(-1)
    exact = plain_outputs(used, targets, divisor)
    (expected,) = torch.autograd.grad(mixed(exact), logits)
    ours = selective_logps(
        logits * 1, targets, temperature=temperature, inplace=inplace, **EVERYTHING
    )
    for a, b in zip(ours, exact, strict=True):
        assert_close(a, b)
    assert_close(torch.autograd.grad(mixed(ours), logits)[0], expected)


@pytest.mark.parametrize("inplace", [False, True], ids=["new_tensor", "inplace"])
@pytest.mark.parametrize("loss_type", ["dapo", "gspo", "sapo"])
def test_the_loss_equals_that_of_the_head(loss_type, inplace):
    head = make_head(N, 8, V)
    rows = make_rows(head)
    spec = LossSpec(loss_type=loss_type, beta=0.1, entropy_coef=0.05)
    logits = head.hidden @ head.weight.t()
    ours = grpo_loss(logits, head.targets, rows=rows, spec=spec, inplace=inplace)
    theirs = linear_grpo_loss(head.hidden, head.weight, head.targets, rows=rows, spec=spec)
    assert_close(ours.loss, theirs.loss)
    assert_close(ours.logps, theirs.logps)
    for name, value in theirs.metrics.items():
        assert_close(ours.metrics[name], value, name=name)
    a = torch.autograd.grad(ours.loss * 3, head.leaves)
    b = torch.autograd.grad(reference_loss(head, rows, spec) * 3, head.leaves)
    for x, y in zip(a, b, strict=True):
        assert_close(x, y)


def test_the_last_position_of_trl_logits_gets_no_gradient():
    logits = make_logits(3, 5, V)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    rows = LossRows.from_padded(mask=mask, advantages=torch.tensor([1.0, -1.0, 2.0]))
    grpo_loss(logits, torch.zeros(3, 4, dtype=torch.long), rows=rows).loss.backward()
    touched = logits.grad.abs().sum(-1) > 0
    assert torch.equal(touched, torch.nn.functional.pad(mask, (0, 1)))


def test_masked_logits_may_be_anything():
    head = make_head(N, 8, V)
    rows = make_rows(head)
    off = ~rows.completion_mask
    clean = (head.hidden @ head.weight.t()).detach()
    dirty = clean.masked_fill(off[:, None], torch.nan).requires_grad_()
    targets = head.targets.masked_fill(off, -100)
    ours = grpo_loss(dirty, targets, rows=rows)
    assert torch.equal(ours.loss, grpo_loss(clean, head.targets, rows=rows).loss)
    ours.loss.backward()
    assert dirty.grad.isfinite().all() and (dirty.grad[off] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_worse_than_plain_torch_in_the_same_dtype(dtype):
    logits = make_logits(64, 301, dtype=dtype)
    exact_logits = logits.detach().double().requires_grad_()
    targets = torch.randint(301, (64,), generator=torch.Generator().manual_seed(2))
    ours = selective_logps(logits, targets, **EVERYTHING)
    plain, exact = plain_outputs(logits, targets), plain_outputs(exact_logits, targets)
    for values in zip(ours, plain, exact, strict=True):
        no_worse_than_torch(*values)
    (a,) = torch.autograd.grad(ours.logps.sum(), logits)
    (b,) = torch.autograd.grad(plain[0].sum(), logits)
    (c,) = torch.autograd.grad(exact[0].sum(), exact_logits)
    assert a.dtype == dtype
    no_worse_than_torch(a, b, c)


def test_inplace_writes_into_the_logits_and_protects_other_users_of_them():
    x = make_logits(N, V)
    targets = torch.zeros(N, dtype=torch.long)
    logits = x * 1
    selective_logps(logits, targets, inplace=True).logps.sum().backward()
    assert torch.equal(logits.detach(), x.grad)
    capped = torch.tanh(x)  # its backward needs its own output
    loss = selective_logps(capped, targets, inplace=True).logps.sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_second_backward_works_on_a_new_tensor():
    logits = make_logits(N, V)
    rows = LossRows(
        row_of_token=torch.arange(N) // 10, num_rows=4, advantages=torch.randn(4).double()
    )
    loss = grpo_loss(logits, torch.zeros(N, dtype=torch.long), rows=rows).loss
    (a,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (b,) = torch.autograd.grad(loss, logits)
    assert torch.equal(a, b)


def test_a_callback_equals_the_built_in_loss():
    head = make_head(N, 8, V)
    rows = replace(make_rows(head), old_logps=None)
    logits = make_logits(N, V)
    ours = grpo_loss(
        logits, head.targets, rows=rows, loss_fn=lambda logps, _, tokens: -tokens.advantages * logps
    )
    built_in = grpo_loss(logits, head.targets, rows=rows, spec=LossSpec(loss_type="reinforce"))
    assert_close(ours.loss, built_in.loss)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(B, L \+ 1, V\)"):
        selective_logps(make_logits(4, 5, V), torch.zeros(4, 3, dtype=torch.long))
