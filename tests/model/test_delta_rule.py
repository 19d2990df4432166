"""The chunked gated delta rule against a float64 recurrence, one token at a time."""

import pytest
import torch

from polaris_fast.model.delta_rule import gated_delta_step, packed_gated_delta_rule
from polaris_fast.model.layout import PackedLayout


def recurrence(q, k, v, g, beta, lengths):
    """The definition (arXiv 2412.06464, eq. 10), every head and row on its own."""
    q = q / (q.square().sum(-1, keepdim=True) + 1e-6).sqrt() / q.shape[-1] ** 0.5
    k = k / (k.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    group = v.shape[1] // k.shape[1]
    out, token = [], 0
    for length in lengths:
        heads = [torch.zeros(k.shape[2], v.shape[2], dtype=v.dtype) for _ in range(v.shape[1])]
        for t in range(token, token + length):
            for h, state in enumerate(heads):
                key, b = k[t, h // group], beta[t, h]
                erase = torch.eye(len(key), dtype=v.dtype) - b * torch.outer(key, key)
                heads[h] = g[t, h].exp() * erase @ state + b * torch.outer(key, v[t, h])
            out.append(torch.stack([s.T @ q[t, h // group] for h, s in enumerate(heads)]))
        token += length
    return torch.stack(out)


def random_inputs(tokens, key_heads=2, value_heads=4, key_dim=8, value_dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    decay = -rand(tokens, value_heads).exp()  # from almost none to almost everything forgotten
    return [
        rand(tokens, key_heads, key_dim),
        rand(tokens, key_heads, key_dim),
        rand(tokens, value_heads, value_dim),
        decay,
        rand(tokens, value_heads).sigmoid(),
    ]


@pytest.mark.parametrize("chunk_size", [4, 32])
@pytest.mark.parametrize("rows", [(1,), (32,), (5, 1, 1, 40, 2), (70, 33, 3)], ids=str)
def test_forward_and_gradients_match_the_recurrence(rows, chunk_size):
    layout = PackedLayout.from_lengths(rows)
    inputs = random_inputs(sum(rows))
    upstream = torch.randn(inputs[2].shape, dtype=torch.float64)
    results = []
    for run in (
        lambda *x: packed_gated_delta_rule(*x, layout, chunk_size=chunk_size),
        lambda *x: recurrence(*x, rows),
    ):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = run(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, upstream)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)


def test_fp32_is_no_worse_than_the_fp32_recurrence():
    rows = (100, 1, 37)
    inputs = random_inputs(sum(rows))
    layout = PackedLayout.from_lengths(rows)
    upstream = torch.randn(inputs[2].shape, dtype=torch.float64)

    def run(rule, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        out = rule(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(dtype))]

    truth = run(lambda *x: recurrence(*x, rows), torch.float64)
    naive = run(lambda *x: recurrence(*x, rows), torch.float32)
    ours = run(lambda *x: packed_gated_delta_rule(*x, layout), torch.float32)
    for exact, theirs, mine in zip(truth, naive, ours, strict=True):
        eps = torch.finfo(torch.float32).eps * exact.abs().max()
        theirs, mine = theirs - exact, mine - exact
        assert mine.abs().max() <= 2 * theirs.abs().max() + eps
        assert mine.square().mean().sqrt() <= 2 * theirs.square().mean().sqrt() + eps


def test_no_decay_and_total_decay_stay_finite():
    rows = (90, 20)
    q, k, v, g, beta = random_inputs(sum(rows))
    for decay in (torch.zeros_like(g), torch.full_like(g, -60.0)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, decay, torch.ones_like(beta))]
        out = packed_gated_delta_rule(*leaves, PackedLayout.from_lengths(rows))
        out.sum().backward()
        assert out.isfinite().all()
        assert all(x.grad.isfinite().all() for x in leaves)


def test_bf16_inputs_come_out_as_bf16():
    inputs = [x.bfloat16() for x in random_inputs(9)]
    layout = PackedLayout.from_lengths((4, 5))
    out = packed_gated_delta_rule(*inputs, layout)
    assert out.dtype == torch.bfloat16
    wide = packed_gated_delta_rule(*(x.float() for x in inputs), layout)
    torch.testing.assert_close(out, wide.bfloat16())


def test_steps_match_the_recurrence_and_write_the_state():
    tokens, rows = 6, 3
    inputs = random_inputs(tokens * rows)
    expected = recurrence(*inputs, [tokens] * rows).view(rows, tokens, 4, 6)
    by_row = [x.view(rows, tokens, *x.shape[1:]) for x in inputs]
    state = torch.zeros(rows, 4, 8, 6, dtype=torch.float64)
    for t in range(tokens):
        out = gated_delta_step(*(x[:, t] for x in by_row), state)
        torch.testing.assert_close(out, expected[:, t])


def test_one_row_does_not_change_another():
    inputs = random_inputs(60)
    layout = PackedLayout.from_lengths((33, 27))
    before = packed_gated_delta_rule(*inputs, layout)
    for x in inputs[:3]:
        x[:33] += 1.0
    after = packed_gated_delta_rule(*inputs, layout)
    assert torch.equal(before[33:], after[33:])
    assert not torch.equal(before[:33], after[:33])
