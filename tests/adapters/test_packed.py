"""Log-probs in the layouts of OpenRLHF, prime-rl and NeMo-RL, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polaris_kernels import FusedHead, TokenLogps, reference
from polaris_kernels.adapters import packed as packed_module
from polaris_kernels.adapters.openrlhf import log_probs_from_hidden, log_probs_from_logits
from polaris_kernels.adapters.packed import PackedHead, packed_logps

D, V = 8, 37
LENGTHS = [5, 1, 7, 0, 3]


def packed(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    T = sum(LENGTHS)
    hidden = torch.randn(T, D, generator=g, dtype=torch.float64).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).requires_grad_()
    ids = torch.randint(V, (T,), generator=g)
    return hidden, weight, ids, torch.tensor([0, *LENGTHS]).cumsum(0).int()


def row_by_row(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: Tensor) -> list[Tensor]:
    """Each row's log-probs of its next tokens, 0 for the first."""
    found = []
    for x, y, t in zip(
        hidden.split(LENGTHS), ids.split(LENGTHS), temperature.split(LENGTHS), strict=True
    ):
        if len(y) < 2:
            found.append(x.new_zeros(len(y)))
            continue
        z = reference.logits(x[:-1], weight, temperature=t[1:])
        found.append(torch.cat([x.new_zeros(1), reference.token_logps(z, y[1:]).logps]))
    return found


def test_rows_never_see_each_other() -> None:
    hidden, weight, ids, cu_seqlens = packed()
    temperature = torch.linspace(0.5, 2.0, len(ids), dtype=torch.float64)
    rows = row_by_row(hidden, weight, ids, temperature)
    ours = packed_logps(
        hidden, weight, ids, cu_seqlens, temperature=temperature, return_entropy=True
    )
    torch.testing.assert_close(ours.logps, torch.cat(rows))
    assert ours.entropy is not None and ours.entropy.shape == ids.shape and ours.lse is None
    padded = packed_logps(hidden, weight, ids, cu_seqlens, temperature=temperature, padded_length=9)
    truth = torch.stack([nn.functional.pad(row, (0, 9 - len(row))) for row in rows])
    torch.testing.assert_close(padded.logps, truth)
    g = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for mine, exact in zip(
        torch.autograd.grad((padded.logps * g).sum(), (hidden, weight)),
        torch.autograd.grad((truth * g).sum(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, exact)


@pytest.mark.parametrize("padded_length", [None, 9])
def test_only_cu_seqlens_is_read_on_the_host(
    padded_length: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty(hidden: Tensor, weight: Tensor, targets: Tensor, **_: object) -> TokenLogps:
        return TokenLogps(hidden.new_empty(targets.shape))

    # a meta tensor holds nothing that could be read
    monkeypatch.setattr(packed_module, "linear_logps", empty)
    hidden, weight, ids, cu_seqlens = (x.detach() for x in packed())
    found = packed_logps(
        hidden.to("meta"), weight.to("meta"), ids.to("meta"), cu_seqlens,
        temperature=torch.ones(len(ids), device="meta"), padded_length=padded_length,
    ).logps  # fmt: skip
    shape = (len(ids),) if padded_length is None else (len(LENGTHS), padded_length)
    assert found.is_meta and found.shape == shape


def test_bad_packing_is_refused() -> None:
    hidden, weight, ids, cu_seqlens = packed()
    with pytest.raises(ValueError, match="must run from 0 to T = 16"):
        packed_logps(hidden, weight, ids, cu_seqlens[:-1])
    with pytest.raises(ValueError, match="must run from 0 to T = 16"):
        packed_logps(hidden, weight, ids, torch.tensor([0, 9, 5, 16]))
    with pytest.raises(ValueError, match="longest row, 7 tokens"):
        packed_logps(hidden, weight, ids, cu_seqlens, padded_length=6)


def test_a_packed_head_answers_as_prime_rls() -> None:
    g = torch.Generator().manual_seed(0)
    linear = nn.Linear(D, V, bias=False, dtype=torch.float64)
    hidden = torch.randn(1, 16, D, generator=g, dtype=torch.float64)
    labels = torch.randint(V, (1, 16), generator=g)
    temperature = torch.linspace(0.5, 2.0, 16, dtype=torch.float64).unsqueeze(0)
    head = PackedHead.from_linear(linear)
    assert head.weight is linear.weight
    out = head(hidden, labels=labels, temperature=temperature)
    truth = reference.token_logps(
        reference.logits(hidden[0], linear.weight, temperature=temperature[0]), labels[0]
    )
    torch.testing.assert_close(out["logprobs"], truth.logps[None])
    torch.testing.assert_close(out["entropy"], truth.entropy[None])
    mine, exact = (
        torch.autograd.grad(2 * a.sum() - b.sum(), linear.weight, retain_graph=True)[0]
        for a, b in ((out["logprobs"], out["entropy"]), (truth.logps, truth.entropy))
    )
    torch.testing.assert_close(mine, exact)
    torch.testing.assert_close(head(hidden), linear(hidden))


class FusedOutputLinear(nn.Linear):
    """The outside of prime-rl 0.8.0's: its constructor, its bias and what its forward demands."""

    def __init__(self, in_features: int, out_features: int, chunk_size: int = 512) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.chunk_size = chunk_size

    def forward(self, hidden_states, labels=None, temperature=None):  # type: ignore[no-untyped-def,override]
        assert labels is not None and temperature is not None
        raise NotImplementedError


class VanillaOutputLinear(nn.Linear):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)


class GemmaFusedOutputLinear(FusedOutputLinear):
    pass


@pytest.mark.parametrize("layer", [FusedOutputLinear, VanillaOutputLinear])
def test_a_packed_head_takes_the_place_of_prime_rls(layer: type[nn.Linear]) -> None:
    theirs = layer(D, V).eval()
    embedding = nn.Embedding(V, D)
    theirs.weight = embedding.weight
    head = PackedHead.from_linear(theirs)
    assert head.weight is embedding.weight and not head.training
    hidden, labels = torch.randn(1, 4, D), torch.tensor([[1, 2, 3, 4]])
    out = head(hidden, labels=labels, temperature=torch.full((1, 4), 0.7))
    exact = (theirs.weight @ hidden[0].t() / 0.7).log_softmax(0).t()
    torch.testing.assert_close(out["logprobs"], exact.gather(1, labels.t()).t())
    # a copy of a packed head still works
    assert PackedHead.from_linear(head).weight is embedding.weight


def test_heads_that_do_more_than_a_product_are_refused() -> None:
    parametrized = nn.utils.parametrizations.weight_norm(FusedOutputLinear(D, V))

    class Adapter(nn.Linear):
        pass

    for layer in (GemmaFusedOutputLinear(D, V), parametrized, Adapter(D, V)):
        with pytest.raises(ValueError, match=r"PackedHead.*: got .*not a plain nn.Linear"):
            PackedHead.from_linear(layer)
    with pytest.raises(ValueError, match=r"FusedHead.*: got .*FusedOutputLinear"):
        FusedHead.from_linear(FusedOutputLinear(D, V))


@pytest.mark.parametrize("shape", [(3, 5), (15,)], ids=["padded", "flat"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_openrlhfs_log_probs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(*shape, D, generator=g, dtype=torch.float64).to(dtype)
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(V, shape, generator=g)
    logits = hidden @ weight.T
    before = logits.detach().clone()
    ours = log_probs_from_logits(logits, labels, 0.7)
    truth = (
        torch.log_softmax(logits.double() / 0.7, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    )
    tolerance = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(ours, truth, **tolerance)
    assert torch.equal(logits, before), "the logits are the caller's"
    if dtype == torch.float64:
        from_hidden = log_probs_from_hidden(hidden, weight, labels, 0.7, return_entropy=True)
        torch.testing.assert_close(from_hidden.logps, truth)
        assert from_hidden.entropy is not None and from_hidden.entropy.shape == shape
        a, b = (
            torch.autograd.grad(x.sum(), weight, retain_graph=True)[0]
            for x in (from_hidden.logps, truth)
        )
        torch.testing.assert_close(a, b)
