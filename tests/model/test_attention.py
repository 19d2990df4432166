"""Varlen attention against softmax written out for each row."""

import pytest
import torch
from torch.nn.attention import varlen

from polaris_fast.model import attention
from polaris_fast.model.attention import attention_backend, register_attention, varlen_attention
from polaris_fast.model.layout import PackedLayout


def row_by_row(q, k, v, lengths, scale, window):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    outs = []
    for rq, rk, rv in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        place = torch.arange(len(rq))
        back = place[:, None] - place[None, :]
        seen = (back >= 0) & (back < window)
        scores = torch.einsum("ihd,jhd->hij", rq, rk) * scale
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        outs.append(torch.einsum("hij,jhd->ihd", weights, rv))
    return torch.cat(outs)


@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (6, 2)], ids=str)
@pytest.mark.parametrize("window", [None, 5])
def test_forward_and_gradients_match(lengths, heads, window):
    torch.manual_seed(0)
    layout = PackedLayout.from_lengths(lengths)
    leaves = [
        torch.randn(sum(lengths), h, 8, dtype=torch.float64, requires_grad=True)
        for h in (heads[0], heads[1], heads[1])
    ]
    ours = varlen_attention(*leaves, layout, scale=0.3, window=window)
    expected = row_by_row(*leaves, list(lengths), 0.3, window or max(lengths))
    torch.testing.assert_close(ours, expected)
    upstream = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(ours, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        strict=True,
    )
    for got, want in pairs:
        torch.testing.assert_close(got, want)


def test_groups_hold_every_row_once_and_waste_little():
    lengths = (130, 10, 100, 1, 64, 99, 31, 128, 2)
    plan = PackedLayout.from_lengths(lengths).attention
    assert sum(rows for rows, _ in plan.groups) == len(lengths)
    assert [length for _, length in plan.groups] == [130, 64]
    tokens = plan.regroup(1).source[plan.regroup(1).slot]
    assert tokens.tolist() == list(range(sum(lengths)))


def of_2_11(query, key, value, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    return query * key.shape[1]


def of_later(
    query, key, value, cu_q, cu_k, max_q, max_k, *,
    scale=None, window_size=(-1, -1), enable_gqa=False,
):  # fmt: skip
    assert enable_gqa
    return query * key.shape[1]


@pytest.mark.parametrize("torchs_own", [of_2_11, of_later])
def test_torchs_varlen_attention_is_called_in_the_way_of_its_version(monkeypatch, torchs_own):
    attention._torch_varlen.cache_clear()
    monkeypatch.setattr(varlen, "varlen_attn", torchs_own)
    q, k = torch.ones(5, 4, 8), torch.ones(5, 2, 8)
    layout = PackedLayout.from_lengths((2, 3))
    assert varlen_attention(q, k, k, layout, backend="torch_varlen").equal(q * 2)
    attention._torch_varlen.cache_clear()


def test_backend_by_device_and_dtype():
    assert attention_backend(torch.device("cpu"), torch.bfloat16) == "grouped_sdpa"
    assert attention_backend(torch.device("cuda"), torch.float32) == "grouped_sdpa"
    assert attention_backend(torch.device("cuda"), torch.bfloat16) in ("flash_attn", "torch_varlen")


def test_registering_twice_is_harmless():
    assert register_attention() == register_attention()


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(4, 4), (4, 1)], ids=str)
def test_cuda_matches_the_cpu(lengths, heads):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(sum(lengths), h, 64, device="cuda", dtype=torch.bfloat16)
        for h in (heads[0], heads[1], heads[1])
    )
    fast = varlen_attention(q, k, v, PackedLayout.from_lengths(lengths, "cuda"))
    wide = (x.cpu().double() for x in (q, k, v))
    slow = varlen_attention(*wide, PackedLayout.from_lengths(lengths))
    torch.testing.assert_close(fast.cpu().double(), slow, rtol=2e-2, atol=2e-2)
