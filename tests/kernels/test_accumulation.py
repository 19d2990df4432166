"""accumulate_into and grad_scale: the weight gradient lands in its buffer, scaled, only there."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from polaris_kernels import FusedHead, LossRows, LossSpec, linear_grpo_loss
from polaris_kernels.accumulation import assert_is_one
from polaris_kernels.testing import no_worse_than_torch

from .cases import Head, as_float32, assert_close, grads, make_head, make_rows, reference_loss

pytestmark = pytest.mark.usefixtures("cpu_backend")

SPEC = LossSpec(loss_type="gspo", beta=0.1, entropy_coef=0.05)
FEW_ROWS = 7 * 33 * 8


def run(head: Head, rows: LossRows, **options: Any) -> Any:
    return linear_grpo_loss(
        head.hidden, head.weight, head.targets, rows=rows, bias=head.bias, **options
    )


@pytest.mark.parametrize("chunk_bytes", [None, FEW_ROWS], ids=["one_chunk", "many_chunks"])
@pytest.mark.parametrize("destination", ["grad", "main_grad"])
def test_calls_add_up_in_the_buffer_and_nowhere_else(destination, chunk_bytes):
    head = make_head(bias=True)
    rows = make_rows(head)
    if destination == "main_grad":
        head.weight.main_grad = torch.zeros_like(head.weight)
    options = {"spec": SPEC, "accumulate_into": destination, "chunk_bytes": chunk_bytes}
    for scale in (0.5, 0.25):
        run(head, rows, grad_scale=scale, **options).loss.backward()
    expected = grads(reference_loss(head, rows, SPEC) * 0.75, head)
    assert_close(getattr(head.weight, destination), expected[1])
    assert_close(head.hidden.grad, expected[0])
    assert_close(head.bias.grad, expected[2])
    assert (head.weight.grad is None) == (destination == "main_grad")


def test_it_is_there_before_backward_and_absent_without_gradients():
    head = make_head(dtype=torch.float32)
    rows = as_float32(make_rows(head))
    with torch.no_grad():
        run(head, rows, accumulate_into="grad")
    assert head.weight.grad is None
    loss = run(head, rows, accumulate_into="grad").loss
    assert_close(head.weight.grad, grads(run(head, rows).loss, head)[1], 1e-6)
    before = head.weight.grad.clone()
    loss.backward()
    assert torch.equal(head.weight.grad, before)


class Allocations(TorchDispatchMode):
    """Bytes of the largest tensor that an operator made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (*args, *(kwargs or {}).values())  # `out=` may be a buffer kept by an earlier call
        inputs = {x.untyped_storage().data_ptr() for x in given if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in inputs:
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return out


def test_no_second_weight_sized_buffer_exists():
    head = make_head(64, 256, 512, dtype=torch.float32)
    rows = as_float32(make_rows(head))
    head.weight.main_grad = torch.zeros_like(head.weight)
    sizes = {}
    for destination in (None, "main_grad"):
        with Allocations() as seen:
            run(head, rows, accumulate_into=destination, chunk_bytes=8 * 512 * 4).loss.backward()
        sizes[destination] = seen.largest
    weight_bytes = head.weight.numel() * 4
    assert sizes[None] >= weight_bytes
    assert sizes["main_grad"] < weight_bytes / 4


@pytest.mark.parametrize("wide", [True, False], ids=["float32_buffer", "bf16_buffer"])
def test_half_weights_lose_nothing_to_many_chunks(wide):
    exact_head = make_head(64, 16, 97).to(torch.bfloat16).to(torch.float64)
    rows = as_float32(make_rows(exact_head))
    exact = grads(reference_loss(exact_head, rows, SPEC), exact_head)[1]
    plain_head, head = exact_head.to(torch.bfloat16), exact_head.to(torch.bfloat16)
    plain = grads(reference_loss(plain_head, rows, SPEC), plain_head)[1]
    buffer = torch.zeros(97, 16, dtype=torch.float32 if wide else torch.bfloat16)
    head.weight.main_grad = buffer
    run(head, rows, spec=SPEC, accumulate_into="main_grad", chunk_bytes=8 * 97 * 4)
    no_worse_than_torch(buffer, plain, exact, factor=0.5 if wide else 2.0)


def test_the_scale_reaches_loss_and_gradients_but_no_metric():
    head = make_head(bias=True)
    rows = make_rows(head)
    plain, scaled = run(head, rows, spec=SPEC), run(head, rows, spec=SPEC, grad_scale=0.125)
    assert torch.equal(scaled.loss, plain.loss * 0.125)
    assert plain.metrics == scaled.metrics
    on_device = run(head, rows, spec=SPEC, grad_scale=torch.tensor(0.125))
    expected = grads(plain.loss, head)
    for found in (scaled, on_device):
        for a, b in zip(grads(found.loss, head), expected, strict=True):
            assert_close(a, b * 0.125)


def test_a_scale_of_one_element_is_a_number_and_of_more_is_refused():
    head = make_head()
    rows = make_rows(head)
    found = run(head, rows, spec=SPEC, grad_scale=torch.tensor([0.125]))
    assert found.loss.shape == ()
    assert torch.equal(found.loss, run(head, rows, spec=SPEC, grad_scale=0.125).loss)
    with pytest.raises(ValueError, match=r"grad_scale must be one number .* shape \(2,\)"):
        run(head, rows, spec=SPEC, grad_scale=torch.ones(2))


def test_a_loss_scale_saves_fp16_gradients_from_underflow():
    """Token weights of 1e-7 are close to the smallest fp16: a scale that comes first keeps them."""
    exact_head = make_head(64, 16, 97, scale=0.3).to(torch.float16).to(torch.float64)
    head = exact_head.to(torch.float16)
    rows = replace(as_float32(make_rows(exact_head)), denominator=1e7)
    scale = 2.0**20
    exact = grads(reference_loss(exact_head, rows, LossSpec()) * scale, exact_head)
    for a, b in zip(grads(run(head, rows, grad_scale=scale).loss, head), exact, strict=True):
        assert a.dtype == torch.float16 and a.isfinite().all()
        assert_close(a.double(), b, 2e-3)


def test_a_large_loss_scale_behind_the_loss_does_not_overflow_on_the_way():
    """The hidden gradient stays fp32 until grad_output has come in: no inf times a small number."""
    exact_head = make_head(64, 16, 97, scale=0.3).to(torch.float16).to(torch.float64)
    head = exact_head.to(torch.float16)
    rows = replace(as_float32(make_rows(exact_head)), denominator=1e-6)
    exact = grads(reference_loss(exact_head, rows, LossSpec()) * 1e-6, exact_head)
    for a, b in zip(grads(run(head, rows).loss * 1e-6, head), exact, strict=True):
        assert_close(a.double(), b, 2e-3)


@pytest.mark.parametrize("factor", [2.0, 0.0])
def test_a_factor_behind_the_loss_is_refused(factor):
    head = make_head()
    loss = run(head, make_rows(head), accumulate_into="grad").loss * factor
    with pytest.raises(RuntimeError, match="pass its factor as grad_scale"):
        loss.backward()
    assert_is_one(torch.ones(()))


def test_the_module_adds_to_a_tied_weight():
    embedding = nn.Embedding(33, 8, dtype=torch.float64)
    linear = nn.Linear(8, 33, bias=False, dtype=torch.float64)
    linear.weight = embedding.weight
    head = FusedHead.from_linear(linear)
    case = make_head()
    rows = make_rows(case)

    def step(**options: Any) -> Tensor:
        embedding.weight.grad = None
        hidden = embedding(case.targets).tanh()
        head(hidden, targets=case.targets, rows=rows, **options).loss.backward()
        return embedding.weight.grad

    assert_close(step(accumulate_into="grad"), step())


class Sharded(nn.Parameter):
    """What ZeRO makes of a parameter, as far as anyone can tell from outside."""

    ds_id = 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {"accumulate_into": "gradient"}, "'gradient' is unknown; use one of"),
        (lambda w: {}, "has no main_grad; set it to"),
        (lambda w: {"weight": w.detach()}, "takes a gradient, got is_leaf=True"),
        (lambda w: {"weight": w * 1}, "is_leaf=False"),
        (lambda w: {"weight": Sharded(w.detach())}, "a sharding engine owns"),
        (lambda w: {"main_grad": torch.zeros(33, 9)}, r"contiguous \(33, 8\) torch.float64"),
        (lambda w: {"main_grad": torch.zeros(33, 8)}, r"got \(33, 8\) torch.float32"),
        (lambda w: {"main_grad": torch.zeros(8, 33).double().t()}, r"strides \(1, 33\)"),
    ],
)
def test_a_weight_that_cannot_take_it_is_refused(change, message):
    head = make_head()
    given = {"weight": head.weight, "accumulate_into": "main_grad"} | change(head.weight)
    if "main_grad" in given:
        head.weight.main_grad = given.pop("main_grad")
    weight = given.pop("weight")
    with pytest.raises(ValueError, match=message):
        linear_grpo_loss(head.hidden, weight, head.targets, rows=make_rows(head), **given)
