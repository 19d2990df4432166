"""torch.compile: one graph around the head, the eager numbers, breaks only where they must be."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from polaris_kernels import (
    FusedHead,
    LossRows,
    LossSpec,
    grpo_loss,
    linear_grpo_loss,
    linear_logps,
    selective_logps,
)
from polaris_kernels.ops.arguments import spec_from_text, spec_to_text
from polaris_kernels.spec import LOSS_TYPES

from .cases import Head, as_float32, assert_close, make_head, make_rows

SPEC = LossSpec(loss_type="gspo", beta=0.1, entropy_coef=0.05, is_correction="token_truncate")
NEEDED = {"cispo": {"epsilon_high": 1.3}, "dr_grpo": {"max_completion_length": 20}}
FEW_ROWS = 7 * 33 * 4
OUTPUTS = {"return_entropy": True, "return_lse": True}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function in one graph: a break is an error."""
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def loss_of(head: Head, rows: LossRows, **options: Any) -> Any:
    # the product is for AOTAutograd to differentiate, in front of ours
    return linear_grpo_loss(
        head.hidden * 2, head.weight, head.targets, rows=rows, bias=head.bias, **options
    )


def logps_of(head: Head, **options: Any) -> Any:
    return linear_logps(head.hidden * 2, head.weight, head.targets, bias=head.bias, **options)


def mixed(found: Any) -> Tensor:
    """A scalar that depends on every token of every output."""
    return sum((x * torch.linspace(0.5, 2, x.shape[0])).sum() for x in found if x is not None)


def assert_same_loss(found: Any, expected: Any, leaves: tuple[Tensor, ...]) -> None:
    assert torch.equal(found.loss, expected.loss)
    assert found.metrics.keys() == expected.metrics.keys()
    for name, value in expected.metrics.items():
        assert torch.equal(found.metrics[name], value), name
    for name in ("logps", "entropy"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert_same_gradients(found.loss * 3, expected.loss * 3, leaves)


def assert_same_gradients(found: Tensor, expected: Tensor, leaves: tuple[Tensor, ...]) -> None:
    pairs = zip(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True
    )
    for a, b in pairs:
        assert a.dtype == b.dtype
        assert_close(a.double(), b.double(), 1e-6)


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "dense"])
@pytest.mark.parametrize("chunk_bytes", [None, FEW_ROWS], ids=["one_chunk", "many_chunks"])
def test_the_loss_is_one_graph_with_the_eager_numbers(chunk_bytes, masked):
    head = make_head(bias=True, dtype=torch.float32)
    rows = as_float32(make_rows(head))
    rows = replace(rows, denominator=20.0, completion_mask=rows.completion_mask if masked else None)
    options = {"spec": SPEC, "chunk_bytes": chunk_bytes, "temperature": 0.9, "softcap": 5.0}
    run = compiled(lambda: loss_of(head, rows, **options))
    assert_same_loss(run(), loss_of(head, rows, **options), head.leaves)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_spec_travels_as_text(loss_type):
    spec = LossSpec(loss_type=loss_type, entropy_coef=0.1, **NEEDED.get(loss_type, {}))
    assert spec_from_text(spec_to_text(spec)) == spec


def test_rows_built_in_the_graph_and_padded_tokens():
    head = make_head(24, dtype=torch.float32)
    mask = torch.rand(4, 6) > 0.3
    advantages = torch.tensor([1.0, -1.0, 0.5, 2.0])

    def run():
        rows = LossRows.from_padded(mask=mask, advantages=advantages, denominator=torch.tensor(9.0))
        return linear_grpo_loss(
            head.hidden.view(4, 6, -1),
            head.weight,
            head.targets.view(4, 6),
            rows=rows,
            grad_scale=0.25,
        )

    found, expected = compiled(run)(), run()
    assert found.logps.shape == (4, 6)
    assert_same_loss(found, expected, head.leaves)


@pytest.mark.parametrize(
    ("trained", "outputs"),
    [
        ((0, 1, 2), OUTPUTS),
        ((1,), {"return_lse": True}),
        ((0,), {}),
        ((0,), OUTPUTS),
        ((0,), OUTPUTS | {"entropy_gradient": False}),
        ((), OUTPUTS),
    ],
    ids=["all", "weight", "frozen_head", "frozen_head_all_outputs", "entropy_value", "nothing"],
)
def test_log_probs_are_one_graph_with_the_eager_numbers(trained, outputs):
    head = make_head(bias=True, dtype=torch.float32)
    parts = [x if i in trained else x.detach() for i, x in enumerate(head.leaves)]
    head = Head(parts[0], parts[1], parts[2], head.targets, {})
    temperature = torch.linspace(0.5, 1.5, 40)
    run = lambda: logps_of(head, temperature=temperature, **outputs)
    found, expected = compiled(run)(), run()
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
    if trained:
        assert_same_gradients(mixed(found), mixed(expected), tuple(parts[i] for i in trained))


def test_without_gradients_nothing_asks_for_them():
    head = make_head(dtype=torch.float32)
    rows = as_float32(make_rows(head))

    def run():
        with torch.no_grad():
            return loss_of(head, rows), logps_of(head)

    (loss, logps), (exact_loss, exact_logps) = compiled(run)(), run()
    assert not loss.loss.requires_grad and not logps.logps.requires_grad
    assert torch.equal(loss.loss, exact_loss.loss)
    assert torch.equal(logps.logps, exact_logps.logps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_leaves_get_half_gradients(dtype):
    head = make_head(dtype=dtype)
    rows = as_float32(make_rows(head))
    assert_same_loss(compiled(lambda: loss_of(head, rows))(), loss_of(head, rows), head.leaves)


def test_autocast_is_the_one_of_the_traced_call():
    head = make_head(dtype=torch.float32)
    rows = as_float32(make_rows(head))

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(head, rows).loss + logps_of(head).logps.sum()

    found, expected = compiled(run)(), run()
    assert torch.equal(found, expected)
    assert_same_gradients(found, expected, head.leaves)


@pytest.mark.parametrize("lead", [(40,), (4, 10), (4, 11)], ids=["packed", "padded", "one_more"])
def test_logits_are_one_graph_with_the_eager_numbers(lead):
    logits = torch.randn(*lead, 33, requires_grad=True)
    shape = (40,) if lead == (40,) else (4, 10)
    targets = make_head().targets.view(shape)
    rows = as_float32(make_rows(make_head()))

    def loss():
        return grpo_loss(logits * 2, targets, rows=rows, spec=SPEC, temperature=0.8)

    def logps():
        return selective_logps(logits * 2, targets, **OUTPUTS)

    assert_same_loss(compiled(loss)(), loss(), (logits,))
    found, expected = compiled(logps)(), logps()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    flat = lambda x: mixed([part.reshape(-1) for part in x])
    assert_same_gradients(flat(found), flat(expected), (logits,))


def test_a_model_with_a_fused_head_is_one_graph():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU())
    head = FusedHead.from_linear(nn.Linear(8, 31))
    rows = as_float32(make_rows(make_head()))
    x, targets = torch.randn(40, 6), torch.randint(31, (40,))

    def step(x):
        return head(model(x), targets=targets, rows=rows, spec=SPEC)

    leaves = (*model.parameters(), *head.parameters())
    assert_same_loss(compiled(step)(x), step(x), leaves)
    assert torch.equal(compiled(head)(x @ x.new_ones(6, 8)), head(x @ x.new_ones(6, 8)))


def test_lengths_do_not_recompile_and_specs_do():
    head = make_head(60, dtype=torch.float32)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def run(hidden, targets, rows, spec):
        return linear_grpo_loss(hidden, head.weight, targets, rows=rows, spec=spec).loss

    specs = (LossSpec(), LossSpec(loss_type="cispo", epsilon_high=2.0))
    frames = []
    for spec in specs:
        for N in range(20, 40, 3):
            rows = LossRows(
                row_of_token=torch.arange(N) * 3 // N,
                num_rows=3,
                advantages=torch.tensor([1.0, -1.0, 0.5]),
                denominator=float(N + 1),
            )
            hidden = head.hidden.detach()[:N].clone().requires_grad_()
            exact = linear_grpo_loss(hidden, head.weight, head.targets[:N], rows=rows, spec=spec)
            assert torch.equal(run(hidden, head.targets[:N], rows, spec), exact.loss)
            frames.append(counter.frame_count)
    first, second = frames[:7], frames[7:]
    assert len(set(first)) == len(set(second)) == 1
    assert second[0] > first[0]


@pytest.mark.parametrize("of", ["loss", "logps", "frozen", "logits_loss", "logits_logps"])
def test_a_new_temperature_does_not_recompile(of):
    head = make_head(40, dtype=torch.float32)
    rows = as_float32(make_rows(head))
    logits = torch.randn(40, 33, requires_grad=True)
    weight = head.weight.detach() if of == "frozen" else head.weight
    leaf = logits if of.startswith("logits") else head.hidden

    def run(temperature):
        if of == "loss":
            given = (head.hidden, weight, head.targets)
            return linear_grpo_loss(*given, rows=rows, temperature=temperature).loss
        if of == "logits_loss":
            return grpo_loss(logits, head.targets, rows=rows, temperature=temperature).loss
        if of == "logits_logps":
            return selective_logps(logits, head.targets, temperature=temperature).logps.sum()
        return linear_logps(head.hidden, weight, head.targets, temperature=temperature).logps.sum()

    counter = CompileCounterWithBackend("aot_eager")
    ours = torch.compile(run, fullgraph=True, backend=counter)
    frames = []
    for temperature in (0.6, 0.7, 0.85, 1.3, 2.0, 0.5):
        found, expected = ours(temperature), run(temperature)
        assert torch.equal(found, expected)
        assert_same_gradients(found, expected, (leaf,))
        frames.append(counter.frame_count)
    # the second value shows that it changes
    assert frames[1] <= 2 and frames[1:] == frames[1:2] * 5
    # 1 has a graph without a division
    ours(1.0)
    before = counter.frame_count
    for temperature in (0.9, 1.0, 1.1):
        ours(temperature)
    assert counter.frame_count == before


def test_a_temperature_of_0_is_refused_when_the_graph_runs():
    head = make_head(dtype=torch.float32)
    run = compiled(
        lambda t: linear_logps(head.hidden, head.weight, head.targets, temperature=t).logps
    )
    with pytest.raises(ValueError, match=r"temperature must be above 0 .*got 0\.0"):
        run(0.0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_callback_breaks_the_graph_and_runs():
    head = make_head(dtype=torch.float32)
    rows = as_float32(make_rows(head))
    callback = lambda logps, entropy, tokens: -tokens.advantages * logps - 0.1 * entropy
    run = lambda: loss_of(head, rows, loss_fn=callback)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="run eagerly"):
        compiled(run)()
    torch._dynamo.reset()
    assert_same_loss(torch.compile(run, backend="aot_eager")(), run(), head.leaves)
    logits = torch.randn(40, 33, requires_grad=True)
    run = lambda: grpo_loss(logits * 1, head.targets, rows=rows, loss_fn=callback)
    assert_same_loss(torch.compile(run, backend="aot_eager")(), run(), (logits,))


def test_bad_input_is_refused_when_the_graph_runs():
    head = make_head(dtype=torch.float32)
    run = compiled(lambda targets: linear_logps(head.hidden, head.weight, targets).logps)
    with pytest.raises(ValueError, match=r"targets must be in \[0, 33\), got 33 to 33"):
        run(torch.full((40,), 33))


@pytest.mark.slow
def test_inductor_gives_the_eager_numbers():
    head = make_head(dtype=torch.float32)
    rows = as_float32(make_rows(head))
    run = torch.compile(lambda: loss_of(head, rows, spec=SPEC), fullgraph=True)
    assert_same_loss(run(), loss_of(head, rows, spec=SPEC), head.leaves)
