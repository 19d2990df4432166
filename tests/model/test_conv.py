"""The packed causal convolution against conv1d of each row."""

import pytest
import torch
import torch.nn.functional as F

from polaris_fast.model import conv
from polaris_fast.model.conv import packed_causal_conv
from polaris_fast.model.layout import PackedLayout


def row_by_row(x, weight, bias, lengths):
    taps = weight.shape[1]
    return torch.cat(
        [
            F.conv1d(F.pad(row.T, (taps - 1, 0))[None], weight[:, None], bias, groups=len(weight))[
                0
            ].T
            for row in x.split(lengths)
        ]
    )


@pytest.mark.parametrize("taps", [2, 4])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("tile", [3, 1_000_000])
def test_forward_and_gradients_match_conv1d(lengths, taps, with_bias, tile, monkeypatch):
    monkeypatch.setattr(conv, "TILE_ELEMENTS", tile * 5)
    torch.manual_seed(0)
    leaves = [torch.randn(sum(lengths), 5), torch.randn(5, taps)]
    leaves += [torch.randn(5)] if with_bias else []
    leaves = [x.double().requires_grad_() for x in leaves]
    x, weight, bias = (*leaves, None)[:3]
    ours = conv_in_double(x, weight, bias, lengths)
    expected = row_by_row(x, weight, bias, list(lengths))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(ours, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        strict=True,
    )
    for got, want in pairs:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def conv_in_double(x, weight, bias, lengths):
    return packed_causal_conv(x, weight, bias, PackedLayout.from_lengths(lengths))


def test_by_hand():
    x = torch.tensor([[1.0], [2.0], [10.0]])
    weight = torch.tensor([[0.5, 3.0]])  # half of the token before, three times the token
    y = packed_causal_conv(x, weight, None, PackedLayout.from_lengths((2, 1)))
    assert y.tolist() == [[3.0], [6.5], [30.0]]


def test_bf16_is_summed_in_fp32():
    torch.manual_seed(0)
    x, weight = torch.randn(40, 8).bfloat16(), torch.randn(8, 4).bfloat16()
    layout = PackedLayout.from_lengths((13, 27))
    ours = packed_causal_conv(x, weight, None, layout)
    wide = packed_causal_conv(x.float(), weight.float(), None, layout)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, wide.bfloat16())
