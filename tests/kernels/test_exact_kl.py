"""linear_kl and linear_kl_loss against the reference: values, gradients, masks, memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from polaris_kernels import LossSpec, kl_pass, linear_kl, linear_kl_loss, merge_metrics, reference
from polaris_kernels import rows as rows_module
from polaris_kernels.testing import no_worse_than_torch

from .cases import Head, as_float32, assert_close, grads, make_head, make_rows


def make_pair(N=24, D=6, V=33, *, ref_D=5, dtype=torch.float64, bias=True, **options: Any):
    """A policy, and a frozen reference of another width with the same options."""
    policy = make_head(N, D, V, bias=bias, dtype=dtype, **options)
    ref = make_head(N, ref_D, V, bias=bias, dtype=dtype, seed=5, **options)
    return policy, ref


def exact(policy: Head, ref: Head) -> torch.Tensor:
    def logits(head: Head) -> torch.Tensor:
        return reference.logits(head.hidden, head.weight, bias=head.bias, **head.options)

    return reference.exact_kl(logits(policy), logits(ref).detach())


def run(function, policy: Head, ref: Head, **options: Any):
    return function(
        policy.hidden,
        policy.weight,
        ref.hidden,
        ref.weight,
        bias=policy.bias,
        ref_bias=ref.bias,
        **(policy.options | options),
    )


OPTIONS = {
    "plain": {},
    "no_bias": {"bias": False},
    "temperature": {"temperature": 0.7},
    "temperature_per_token": {"temperature": torch.linspace(0.5, 2.0, 24, dtype=torch.float64)},
    "scale": {"logit_scale": 0.3},
    "softcap": {"softcap": 3.0, "temperature": 0.7, "logit_scale": 0.5},
    "peaked": {"scale": 20.0},
}


@pytest.mark.parametrize("chunk_tokens", [1, 7, 1000])
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients_match_the_reference(name, chunk_tokens):
    policy, ref = make_pair(**OPTIONS[name])
    expected = exact(policy, ref)
    ours = run(linear_kl, policy, ref, chunk_bytes=chunk_tokens * 33 * 16)
    assert_close(ours, expected, 1e-12)
    # uneven weights of both signs: a wrong factor on one token cannot hide
    weight = torch.linspace(-1.0, 2.0, 24, dtype=torch.float64)
    for a, b in zip(
        grads((ours * weight).sum(), policy), grads((expected * weight).sum(), policy), strict=True
    ):
        assert_close(a, b, 1e-12)


def test_two_tokens_by_hand():
    # p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 log(3/2) + 1/4 log(1/2)
    hidden = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[3.0], [1.0]], dtype=torch.float64).log()
    kl = linear_kl(hidden, weight, hidden.detach(), torch.zeros_like(weight))
    value = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    assert kl.item() == pytest.approx(value.item())
    kl.sum().backward()
    # only log 3 depends on hidden: p (log p/q - KL) log 3
    slope = 0.75 * (torch.tensor(1.5).log() - value) * torch.tensor(3.0).log()
    assert hidden.grad.item() == pytest.approx(slope.item())


def test_it_is_the_policy_mean_of_the_k1_estimator():
    policy, ref = make_pair(N=1)
    ids = torch.arange(33)
    logps = [
        replace(head, hidden=head.hidden.expand(33, -1), targets=ids).plain().logps
        for head in (policy, ref)
    ]
    k1 = reference.kl_estimate("k1", *logps)
    assert_close(run(linear_kl, policy, ref), (logps[0].exp() * k1).sum().unsqueeze(0), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_worse_than_plain_torch_in_the_same_dtype(dtype):
    policy, ref = (
        make_head(60, 32, 211, scale=0.3, seed=s).to(dtype).to(torch.float64) for s in (0, 5)
    )
    close = replace(ref, hidden=policy.hidden.detach() + 0.1 * ref.hidden, weight=policy.weight)
    close = close.to(dtype).to(torch.float64)
    narrow, narrow_ref = policy.to(dtype), close.to(dtype)
    wanted, plain = exact(policy, close), exact(narrow, narrow_ref)
    ours = run(linear_kl, narrow, narrow_ref, chunk_bytes=16 * 211 * 8)
    assert ours.dtype == torch.float32
    no_worse_than_torch(ours, plain, wanted, name="kl")
    found = (grads(x.sum(), h) for x, h in ((ours, narrow), (plain, narrow), (wanted, policy)))
    for a, b, c, name in zip(*found, ("hidden", "weight"), strict=True):
        assert a.dtype == dtype
        no_worse_than_torch(a, b, c, name=name)


def test_a_model_is_at_distance_zero_from_itself():
    policy = make_head(24, 16, 101, dtype=torch.float32)
    kl = run(linear_kl, policy, policy)
    assert (kl == 0).all()
    assert all((g == 0).all() for g in grads(kl.sum(), policy))


def test_close_models_keep_more_digits_than_log_softmax():
    policy = make_head(48, 64, 20_001, dtype=torch.float32, scale=0.3)
    ref = replace(policy, hidden=policy.hidden.detach() + 1e-3)
    with torch.no_grad():
        wide = exact(policy.to(torch.float64), ref.to(torch.float64))
        assert wide.max() < 1e-4
        ours, plain = run(linear_kl, policy, ref), exact(policy, ref)
    assert (ours - wide).abs().max() < 0.5 * (plain - wide).abs().max()


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_a_frozen_weight_needs_no_logits_in_backward(frozen, monkeypatch):
    policy, ref = make_pair(bias=False)
    policy.weight.requires_grad_(not frozen)
    kl = run(linear_kl, policy, ref)
    calls = []
    inner = kl_pass.gemm.logits_into
    monkeypatch.setattr(kl_pass.gemm, "logits_into", lambda *a: (calls.append(a), inner(*a)))
    kl.sum().backward(retain_graph=True)
    assert len(calls) == (0 if frozen else 2)
    assert (policy.weight.grad is None) == frozen
    first = policy.hidden.grad.clone()
    kl.sum().backward()
    assert torch.equal(policy.hidden.grad, 2 * first)


@pytest.mark.parametrize("leaf", [0, 1, 2], ids=["hidden", "weight", "bias"])
def test_only_the_leaves_that_ask_get_a_gradient(leaf):
    policy, ref = make_pair()
    expected = grads(exact(policy, ref).sum(), policy)[leaf]
    leaves = [x if i == leaf else x.detach() for i, x in enumerate(policy.leaves)]
    cut = replace(policy, hidden=leaves[0], weight=leaves[1], bias=leaves[2])
    ref.hidden.grad = None
    run(linear_kl, cut, ref).sum().backward()
    assert_close(leaves[leaf].grad, expected)
    assert ref.hidden.grad is None and ref.weight.grad is None


def test_no_grad_makes_no_gradients():
    policy, ref = make_pair()
    with torch.no_grad():
        quiet = run(linear_kl, policy, ref)
    assert not quiet.requires_grad
    assert torch.equal(quiet, run(linear_kl, policy, ref).detach())


class _Largest(TorchDispatchMode):
    """Most elements that any tensor made inside has, views of the arguments left out."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return out


@pytest.mark.parametrize("loss", [False, True], ids=["per_token", "loss"])
def test_logits_exist_for_one_chunk_at_a_time(loss):
    N, V, C = 64, 501, 8
    policy, ref = make_pair(N, 6, V, dtype=torch.float32, bias=False)
    options: dict[str, Any] = {"chunk_bytes": C * V * 8}
    if loss:
        options["rows"] = make_rows(policy)
        options["rows"] = replace(options["rows"], completion_mask=None)
    with _Largest() as largest:
        out = run(linear_kl_loss if loss else linear_kl, policy, ref, **options)
        (out.loss if loss else out.sum()).backward()
    # one buffer holds both models' chunks and the scratch of a block of rows
    assert largest.elements <= 3 * C * V < N * V


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("dense", [False, True], ids=["gathered", "masked_in_place"])
def test_the_loss_is_the_weighted_sum_over_tokens_with_loss(aggregation, dense, monkeypatch):
    if dense:
        monkeypatch.setattr(rows_module, "_is_host_memory", lambda value: False)
    policy, ref = make_pair(40)
    rows = replace(
        make_rows(policy), row_weight=torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 1.0]).double()
    )
    spec = LossSpec(aggregation=aggregation)
    kl = exact(policy, ref)
    kept = rows.completion_mask & (rows.row_weight[rows.row_of_token] != 0)
    counts = torch.bincount(rows.row_of_token[kept], minlength=6).clamp(min=1)
    per_row = rows.row_weight
    if aggregation == "sequence_mean":
        per_row = per_row / counts / len(rows.row_of_token[kept].unique())
    else:
        per_row = per_row / kept.sum()
    expected = (kl * per_row[rows.row_of_token] * kept).sum()
    slopes = grads(expected, policy)
    with torch.no_grad():
        policy.hidden[~rows.completion_mask] = torch.inf
        ref.hidden[~rows.completion_mask] = torch.nan
    out = run(linear_kl_loss, policy, ref, rows=rows, spec=spec, chunk_bytes=7 * 33 * 16)
    assert_close(out.loss, expected)
    assert_close(out.kl, kl * kept)
    assert_close(out.metrics["sum_kl"], (kl * kept).sum())
    for a, b in zip(grads(0.3 * out.loss, policy), slopes, strict=True):
        assert_close(a, 0.3 * b)


@pytest.mark.parametrize("scale", [0.125, torch.tensor([0.125])], ids=["number", "tensor"])
def test_the_scale_reaches_loss_and_gradients_but_no_metric(scale):
    policy, ref = make_pair(40)
    rows = make_rows(policy)
    plain = run(linear_kl_loss, policy, ref, rows=rows)
    scaled = run(linear_kl_loss, policy, ref, rows=rows, grad_scale=scale)
    assert scaled.loss.shape == () and torch.equal(scaled.loss, plain.loss * 0.125)
    assert plain.metrics == scaled.metrics and torch.equal(plain.kl, scaled.kl)
    for a, b in zip(grads(scaled.loss, policy), grads(plain.loss, policy), strict=True):
        assert_close(a, b * 0.125)


def test_a_loss_scale_saves_fp16_gradients_from_underflow(monkeypatch):
    # GPU GEMMs read d loss / d logits in the weight's dtype: here as there
    inner = kl_pass._Gradients.add
    monkeypatch.setattr(
        kl_pass._Gradients, "add", lambda self, tokens, dz: inner(self, tokens, dz.half().float())
    )
    wide = [
        replace(head.to(torch.float16).to(torch.float64), bias=None)
        for head in make_pair(64, scale=0.3, bias=False)
    ]
    policy, ref = (head.to(torch.float16) for head in wide)
    rows = replace(as_float32(make_rows(wide[0])), denominator=1e7)
    found = run(linear_kl_loss, policy, ref, rows=rows, grad_scale=2.0**20)
    kl = exact(*wide)[rows.completion_mask].sum() / 1e7 * 2.0**20
    for a, b in zip(grads(found.loss, policy), grads(kl, wide[0]), strict=True):
        assert a.dtype == torch.float16
        assert_close(a.double(), b, 5e-3)


def test_micro_batches_with_a_global_denominator_add_up():
    policy, ref = make_pair(40, bias=False)
    rows = make_rows(policy)
    whole = run(linear_kl_loss, policy, ref, rows=rows)
    outs = []
    for part in (rows.row_of_token < 2, rows.row_of_token >= 2):
        piece = replace(
            rows,
            row_of_token=rows.row_of_token[part],
            completion_mask=rows.completion_mask[part],
            denominator=rows.completion_mask.sum(),
            old_logps=None,
            ref_logps=None,
            rollout_logps=None,
        )
        cut, cut_ref = (replace(h, hidden=h.hidden[part]) for h in (policy, ref))
        outs.append(run(linear_kl_loss, cut, cut_ref, rows=piece))
    total = outs[0].loss + outs[1].loss
    assert_close(total, whole.loss)
    for a, b in zip(grads(total, policy), grads(whole.loss, policy), strict=True):
        assert_close(a, b)
    merged = merge_metrics([out.metrics for out in outs])
    assert_close(merged["sum_kl"], whole.metrics["sum_kl"])


def test_padded_hidden_states_and_per_token_temperatures():
    policy, ref = make_pair(24)
    temperature = torch.linspace(0.5, 2.0, 24, dtype=torch.float64)
    flat = run(linear_kl, policy, ref, temperature=temperature)
    folded = [replace(h, hidden=h.hidden.view(4, 6, -1)) for h in (policy, ref)]
    assert torch.equal(run(linear_kl, *folded, temperature=temperature.view(4, 6)), flat.view(4, 6))
    rows = replace(make_rows(policy), completion_mask=torch.arange(24) % 3 > 0)
    out = run(linear_kl_loss, *folded, rows=rows, temperature=temperature.view(4, 6))
    assert out.kl.shape == (4, 6)
    assert_close(out.kl.view(-1), flat * rows.completion_mask)


@pytest.mark.parametrize("how", ["mask", "empty"])
def test_no_tokens_with_loss_is_zero_with_a_graph(how):
    policy, ref = make_pair(0 if how == "empty" else 12)
    rows = make_rows(policy, 2)
    rows = replace(rows, completion_mask=torch.zeros_like(rows.row_of_token))
    out = run(linear_kl_loss, policy, ref, rows=rows)
    assert out.loss == 0 and out.metrics["sum_kl"] == 0
    assert all((g == 0).all() for g in grads(out.loss, policy))
    if how == "empty":
        assert run(linear_kl, policy, ref).shape == (0,)


def test_a_second_backward_of_the_loss_says_what_to_do():
    policy, ref = make_pair()
    loss = run(linear_kl_loss, policy, ref, rows=make_rows(policy)).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"linear_kl_loss: .* compute the loss again"):
        loss.backward()


def test_autocast_sets_the_dtype_of_the_gemms():
    policy, ref = make_pair(bias=False, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        kl = run(linear_kl, policy, ref)
    narrow = [h.to(torch.bfloat16) for h in (policy, ref)]
    assert kl.dtype == torch.float32
    assert torch.equal(kl, run(linear_kl, *narrow))
    assert all(g.dtype == torch.float32 for g in grads(kl.sum(), policy))


@pytest.mark.parametrize("loss", [False, True], ids=["per_token", "loss"])
@pytest.mark.parametrize("chunk_bytes", [None, 7 * 33 * 8], ids=["one_chunk", "many_chunks"])
def test_autocast_does_not_narrow_what_is_summed_wide(chunk_bytes, loss):
    policy, ref = make_pair(bias=False, dtype=torch.float32)
    narrow, narrow_ref = (h.to(torch.bfloat16) for h in (policy, ref))

    def found(policy, ref):
        if not loss:
            return grads(run(linear_kl, policy, ref, chunk_bytes=chunk_bytes).sum(), policy)
        out = run(linear_kl_loss, policy, ref, rows=make_rows(policy), chunk_bytes=chunk_bytes)
        return grads(out.loss, policy)

    with torch.autocast("cpu", torch.bfloat16):
        inside = found(policy, ref)
    weight, rounded = inside[1], found(narrow, narrow_ref)[1]
    assert not torch.equal(weight, weight.bfloat16().float())
    assert torch.equal(weight.bfloat16(), rounded)


def test_bitwise_repeatable_and_chunked_alike():
    policy, ref = make_pair(40, dtype=torch.float32)
    rows = make_rows(policy)
    first, second = (run(linear_kl_loss, policy, ref, rows=rows) for _ in range(2))
    assert torch.equal(first.loss, second.loss)
    for a, b in zip(grads(first.loss, policy), grads(second.loss, policy), strict=True):
        assert torch.equal(a, b)


def test_trl_agrees_on_the_reverse_kl():
    trl = pytest.importorskip("trl.kernels.chunked_divergence")
    policy, ref = make_pair(40, 8, 301, dtype=torch.float32)
    ours = run(linear_kl, policy, ref, temperature=0.8)
    theirs, _ = trl.ChunkedDivergenceFunction.apply(
        policy.hidden,
        policy.weight,
        policy.bias,
        ref.hidden.detach(),
        ref.weight.detach(),
        ref.bias.detach(),
        1.0,
        0.8,
    )
    assert_close(ours, theirs, 1e-5)
    for a, b in zip(grads(ours.sum(), policy), grads(theirs.sum(), policy), strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ref_hidden": torch.zeros(23, 5)}, "ref_hidden must have one row for each of the 24"),
        ({"ref_weight": torch.zeros(32, 5)}, "ref_weight must have the 33 rows of weight"),
        ({"ref_weight": torch.zeros(33, 4)}, r"linear_kl.* \(reference\): hidden must be"),
        ({"weight": torch.zeros(0)}, "a sharding engine has not gathered"),
        ({"softcap": -1.0}, "softcap must be above 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
@pytest.mark.parametrize("function", [linear_kl, linear_kl_loss])
def test_bad_inputs_name_the_argument_and_the_remedy(function, change, message):
    policy, ref = make_pair()
    given = {
        "hidden": policy.hidden,
        "weight": policy.weight,
        "ref_hidden": ref.hidden,
        "ref_weight": ref.weight,
    }
    if function is linear_kl_loss:
        given["rows"] = make_rows(policy)
    with pytest.raises(ValueError, match=message):
        function(**(given | change))
