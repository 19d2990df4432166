"""linear_logps: values and gradients against the float64 reference, where peers had bugs."""

from typing import Any

import pytest
import torch

from polaris_kernels import linear_logps
from polaris_kernels.testing import no_worse_than_torch

from .cases import Head, assert_close, grads, make_head

pytestmark = pytest.mark.usefixtures("cpu_backend")

OUTPUTS = ("logps", "entropy", "lse")
EVERYTHING = {"return_entropy": True, "return_lse": True}
# a few rows of logits at a time: many chunks, the last one shorter
TINY_CHUNKS = 5 * 33 * 8


def run(head: Head, **options: Any) -> Any:
    return linear_logps(
        head.hidden, head.weight, head.targets, bias=head.bias, **(head.options | options)
    )


def mixed(found: Any, seed: int = 3) -> torch.Tensor:
    """A scalar that depends on every token of every output."""
    g = torch.Generator().manual_seed(seed)
    values = [getattr(found, name) for name in OUTPUTS]
    return sum((v * torch.randn(v.shape, generator=g).to(v.dtype)).sum() for v in values)


@pytest.mark.parametrize("chunk_bytes", [None, TINY_CHUNKS], ids=["one_chunk", "many_chunks"])
@pytest.mark.parametrize("softcap", [None, 5.0], ids=["no_cap", "softcap"])
@pytest.mark.parametrize("temperature", [1.0, 0.7, "per_token"])
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
def test_values_and_gradients_match_the_reference(bias, temperature, softcap, chunk_bytes):
    if temperature == "per_token":
        temperature = torch.linspace(0.5, 1.5, 40, dtype=torch.float64)
    head = make_head(bias=bias, temperature=temperature, softcap=softcap, logit_scale=1.3)
    ours, exact = run(head, chunk_bytes=chunk_bytes, **EVERYTHING), head.plain()
    for name in OUTPUTS:
        assert_close(getattr(ours, name), getattr(exact, name), name=name)
    for a, b in zip(grads(mixed(ours), head), grads(mixed(exact), head), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("chunk_bytes", [None, TINY_CHUNKS], ids=["one_chunk", "many_chunks"])
@pytest.mark.parametrize("softcap", [None, 5.0], ids=["no_cap", "softcap"])
def test_a_frozen_head_gives_the_same_hidden_gradient(softcap, chunk_bytes):
    head = make_head(softcap=softcap, temperature=0.8)
    frozen = Head(head.hidden, head.weight.detach(), None, head.targets, head.options)
    ours = run(frozen, chunk_bytes=chunk_bytes, **EVERYTHING)
    (a,) = torch.autograd.grad(mixed(ours), head.hidden)
    assert_close(a, grads(mixed(head.plain()), head)[0])


def test_a_frozen_head_does_not_read_the_weight_in_backward():
    head = make_head()
    weight = head.weight.detach().clone()
    found = linear_logps(head.hidden, weight, head.targets)
    weight.fill_(torch.nan)
    (gradient,) = torch.autograd.grad(found.logps.sum(), head.hidden)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_an_entropy_without_gradient_leaves_the_other_gradients_as_they_are(frozen):
    head = make_head(softcap=4.0)
    given = Head(head.hidden, head.weight.detach(), None, head.targets, head.options)
    leaves = [head.hidden] if frozen else [head.hidden, head.weight]
    ours = run(given if frozen else head, entropy_gradient=False, **EVERYTHING)
    exact = head.plain()
    assert_close(ours.entropy, exact.entropy)
    assert not ours.entropy.requires_grad and ours.logps.requires_grad
    found = torch.autograd.grad(ours.logps.sum() - 2 * ours.lse.sum(), leaves)
    truth = torch.autograd.grad(exact.logps.sum() - 2 * exact.lse.sum(), leaves)
    for a, b in zip(found, truth, strict=True):
        assert_close(a, b)


def test_an_entropy_without_gradient_costs_a_frozen_head_no_unit_gradient():
    head = make_head()
    given = Head(head.hidden, head.weight.detach(), None, head.targets, head.options)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        run(given, return_entropy=True, entropy_gradient=False)
    assert [tuple(x.shape) for x in kept] == [tuple(head.hidden.shape)]


@pytest.mark.parametrize("outputs", [("entropy",), ("lse",), ("entropy", "lse")])
def test_gradients_of_single_outputs_match(outputs):
    head = make_head()
    ours, exact = run(head, **EVERYTHING), head.plain()
    a = grads(sum(getattr(ours, n).sum() for n in outputs), head)
    b = grads(sum(getattr(exact, n).sum() for n in outputs), head)
    for x, y in zip(a, b, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("leaf", [0, 1, 2], ids=["hidden", "weight", "bias"])
def test_only_the_leaves_that_ask_get_a_gradient(leaf):
    head = make_head(bias=True)
    parts = [x if i == leaf else x.detach() for i, x in enumerate(head.leaves)]
    found = linear_logps(parts[0], parts[1], head.targets, bias=parts[2])
    found.logps.sum().backward()
    assert [x.grad is not None for x in parts] == [i == leaf for i in range(3)]
    assert_close(parts[leaf].grad, grads(head.plain().logps.sum(), head)[leaf])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 20.0], ids=["flat", "peaked"])
def test_no_worse_than_plain_torch_in_the_same_dtype(dtype, scale):
    exact_head = make_head(64, 48, 401, scale=scale / 7).to(dtype).to(torch.float64)
    head = exact_head.to(dtype)
    exact, plain, ours = exact_head.plain(), head.plain(), run(head, **EVERYTHING)
    for name in OUTPUTS:
        values = (getattr(x, name) for x in (ours, plain, exact))
        no_worse_than_torch(*values, name=name)
    found = (grads(mixed(x), h) for x, h in ((ours, head), (plain, head), (exact, exact_head)))
    for a, b, c, name in zip(*found, ("hidden", "weight"), strict=True):
        assert a.dtype == dtype
        no_worse_than_torch(a, b, c, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weight_gradient_over_many_chunks_is_as_good_as_over_one(dtype):
    exact_head = make_head(256, 16, 97).to(dtype).to(torch.float64)
    head = exact_head.to(dtype)
    exact = grads(exact_head.plain().logps.sum(), exact_head)[1]
    one = grads(run(head).logps.sum(), head)[1]
    many = grads(run(head, chunk_bytes=8 * 97 * 4).logps.sum(), head)[1]
    no_worse_than_torch(many, one, exact, factor=1.5)


@pytest.mark.parametrize("V", [7, 50_257, 151_936, 248_320])
def test_odd_vocabularies_have_no_phantom_mass(V):
    head = make_head(3, 5, V, dtype=torch.float32, bias=True)
    ours, exact = run(head, **EVERYTHING), head.to(torch.float64).plain()
    for name in OUTPUTS:
        assert_close(getattr(ours, name).double(), getattr(exact, name), 1e-5, name)


@pytest.mark.parametrize("softcap", [None, 5.0], ids=["no_cap", "softcap"])
@pytest.mark.parametrize("V", [33, 4_096, 9_001])
def test_streaming_over_vocabulary_tiles_matches(V, softcap):
    temperature = torch.linspace(0.5, 1.5, 37, dtype=torch.float64)
    head = make_head(37, 6, V, bias=True, scale=3.0, softcap=softcap, temperature=temperature)
    with torch.no_grad():
        ours = run(head, chunk_bytes=64 * 1024, **EVERYTHING)
    exact = head.plain()
    for name in OUTPUTS:
        assert_close(getattr(ours, name), getattr(exact, name), name=name)
        assert not getattr(ours, name).requires_grad


def test_no_grad_and_gradient_passes_agree_to_the_bit_in_one_chunk():
    head = make_head(dtype=torch.float32)
    with torch.no_grad():
        alone = run(head, return_entropy=True)
    for found in (run(head, return_entropy=True), run(head.to(torch.float32), return_entropy=True)):
        assert torch.equal(found.logps, alone.logps)
        assert torch.equal(found.entropy, alone.entropy)


@pytest.mark.parametrize("N", [0, 1, 3])
def test_few_or_no_tokens(N):
    head = make_head(N, bias=True)
    ours = run(head, **EVERYTHING)
    for a, b in zip(grads(mixed(ours), head), grads(mixed(head.plain()), head), strict=True):
        assert_close(a, b)


def test_more_rows_than_a_16_bit_grid():
    head = make_head(65_537, 3, 5, dtype=torch.float32)
    assert_close(run(head).logps.double(), head.to(torch.float64).plain().logps, 1e-5)


def test_leading_dimensions_and_strides_do_not_matter():
    head = make_head()
    wide = torch.randn(8, 4, 10, dtype=torch.float64)
    hidden = wide.transpose(1, 2)[:, :5].transpose(0, 1).requires_grad_()
    weight = torch.randn(4, 33, dtype=torch.float64).t().requires_grad_()
    targets = head.targets.view(8, 5).t()
    ours = linear_logps(hidden, weight, targets)
    flat = Head(hidden.reshape(-1, 4), weight, None, targets.reshape(-1), {})
    assert ours.logps.shape == (5, 8)
    assert_close(ours.logps.reshape(-1), flat.plain().logps)
    a = torch.autograd.grad(ours.logps.sum(), (hidden, weight))
    b = torch.autograd.grad(flat.plain().logps.sum(), (hidden, weight))
    for x, y in zip(a, b, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("enabled", [False, True], ids=["off", "on"])
def test_autocast_casts_like_linear_and_returns_leaf_dtypes(enabled):
    head = make_head(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        ours = run(head)
        a = grads(ours.logps.sum(), head)
    dtype = torch.bfloat16 if enabled else torch.float32
    rounded = head.to(dtype)
    b = grads(run(rounded).logps.sum(), rounded)
    assert torch.equal(ours.logps, run(rounded).logps)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == torch.float32
        assert_close(x.double(), y.double(), 1e-2 if enabled else 0.0)


def test_bf16_logits_are_rounded_as_a_bf16_engine_rounds_them():
    head = make_head(dtype=torch.bfloat16, scale=4.0, temperature=0.9)
    exact = (head.hidden.double() @ head.weight.double().t()).float().bfloat16().double() / 0.9
    expected = exact.log_softmax(-1).gather(1, head.targets[:, None])[:, 0]
    assert_close(run(head, logits_dtype="bf16").logps.double(), expected, 1e-5)
    assert (run(head).logps.double() - expected).abs().max() > 1e-3


def test_backward_twice_with_retain_graph_gives_the_same():
    head = make_head()
    loss = run(head).logps.sum()
    first = torch.autograd.grad(loss, head.leaves, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, head.leaves), strict=True):
        assert torch.equal(a, b)


def test_a_weight_changed_before_backward_is_noticed():
    head = make_head()
    loss = run(head).logps.sum()
    with torch.no_grad():
        head.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_buffers_made_in_inference_mode_serve_later_calls():
    head = make_head(41, dtype=torch.float32)
    with torch.inference_mode():
        run(head)
    run(head).logps.sum().backward()


def test_inference_tensors_are_read_but_not_trained_through():
    head = make_head(dtype=torch.float32)
    with torch.inference_mode():
        hidden = head.hidden.clone()
    assert hidden.is_inference()
    expected = run(head).logps
    with torch.no_grad():
        assert torch.equal(linear_logps(hidden, head.weight, head.targets).logps, expected)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        linear_logps(hidden, head.weight, head.targets)


@pytest.mark.parametrize("D", [1, 3, 63])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_hidden_size_will_do(D, dtype):
    exact_head = make_head(9, D, 65, bias=True, scale=0.5).to(dtype).to(torch.float64)
    head = exact_head.to(dtype)
    exact, plain, ours = exact_head.plain(), head.plain(), run(head, **EVERYTHING)
    for a, b, c in zip(
        grads(mixed(ours), head), grads(mixed(plain), head), grads(mixed(exact), exact_head),
        strict=True,
    ):  # fmt: skip
        no_worse_than_torch(a, b, c)


def test_bitwise_repeatable():
    head = make_head(dtype=torch.float32)
    runs = [grads(mixed(run(head, **EVERYTHING)), head) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.full((40,), 33)}, r"targets must be in \[0, 33\), got 33 to 33"),
        ({"targets": torch.full((40,), -100)}, "completion_mask"),
        ({"targets": torch.zeros(40)}, "targets must be integers"),
        ({"targets": torch.zeros(39, dtype=torch.long)}, r"targets must be \(40,\)"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": torch.arange(40.0)}, "above 0 for every token, got 0.0"),
        ({"temperature": torch.ones(7)}, "one per token"),
        ({"softcap": -1.0}, "softcap must be above 0"),
        ({"logits_dtype": "fp8"}, "logits_dtype='fp8' is unknown"),
        ({"chunk_bytes": 0}, "chunk_bytes must be 1 or more"),
        ({"weight": torch.zeros(0)}, "has not gathered"),
        ({"bias": torch.zeros(3)}, r"bias must be \(33,\)"),
        ({"backend": "abacus"}, "backend 'abacus'"),
    ],
)
def test_bad_input_names_the_argument_and_the_remedy(change, message):
    head = make_head()
    given = {"hidden": head.hidden, "weight": head.weight, "targets": head.targets} | change
    with pytest.raises(ValueError, match=message):
        linear_logps(given.pop("hidden"), given.pop("weight"), given.pop("targets"), **given)
