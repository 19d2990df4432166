"""The head on a GPU, by its default backend there (Triton) and by torch: the same numbers as the
reference, eager and compiled, and no wait for the device inside a step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from polaris_kernels import (
    LossRows,
    LossSpec,
    VocabParallel,
    active_backend,
    linear_grpo_loss,
    linear_logps,
)
from polaris_kernels.backends import ENVIRONMENT_KEY
from polaris_kernels.testing import no_worse_than_torch

from .cases import Head, as_float32, assert_close, grads, make_head, make_rows, reference_loss

pytestmark = pytest.mark.gpu


def on_gpu(head: Head, dtype: torch.dtype) -> Head:
    moved = head.to(dtype)
    hidden, weight = (x.detach().cuda().requires_grad_() for x in (moved.hidden, moved.weight))
    return Head(hidden, weight, None, head.targets.cuda(), head.options)


@pytest.fixture(params=["triton", "torch"])
def backend(request, monkeypatch):
    """The backend that calls without a `backend` argument get."""
    if request.param == "triton":
        monkeypatch.delenv(ENVIRONMENT_KEY, raising=False)
    else:
        monkeypatch.setenv(ENVIRONMENT_KEY, request.param)
    assert active_backend("cuda") == request.param
    return request.param


@pytest.fixture
def no_sync():
    """Inside, an operation that makes the host wait for the device is an error."""

    @contextmanager
    def guarded() -> Iterator[None]:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return guarded


@pytest.mark.parametrize("chunk_bytes", [None, 100 * 211 * 8], ids=["one_chunk", "many_chunks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gathered", [True, False], ids=["gathered", "masked_in_place"])
@pytest.mark.parametrize("loss_type", ["dapo", "gspo"])
def test_loss_and_gradients(backend, loss_type, gathered, dtype, chunk_bytes):
    exact_head = make_head(300, 64, 211, scale=0.3).to(dtype).to(torch.float64)
    rows = as_float32(make_rows(exact_head))
    spec = LossSpec(loss_type=loss_type, beta=0.1, entropy_coef=0.01)
    plain_head = exact_head.to(dtype)
    exact, plain = reference_loss(exact_head, rows, spec), reference_loss(plain_head, rows, spec)
    index = rows.completion_mask.nonzero().squeeze(1) if gathered else None
    head = on_gpu(exact_head, dtype)
    out = linear_grpo_loss(
        head.hidden,
        head.weight,
        head.targets,
        rows=replace(rows, token_index=index).to("cuda"),
        spec=spec,
        chunk_bytes=chunk_bytes,
    )
    found = zip(grads(out.loss, head), grads(plain, plain_head), grads(exact, exact_head),
                strict=True)  # fmt: skip
    for a, b, c in found:
        no_worse_than_torch(a.cpu(), b, c)


def on_gpu_with_rows(gathered: bool = True) -> tuple[Head, LossRows]:
    plain = make_head(300, 64, 211)
    rows = as_float32(make_rows(plain))
    index = rows.completion_mask.nonzero().squeeze(1) if gathered else None
    rows = replace(rows, token_index=index, denominator=200.0)
    return on_gpu(plain, torch.bfloat16), rows.to("cuda")


def loss_of(head: Head, rows: LossRows, **options: Any) -> Any:
    return linear_grpo_loss(head.hidden, head.weight, head.targets, rows=rows, **options)


@pytest.mark.parametrize("gathered", [True, False], ids=["gathered", "masked_in_place"])
@pytest.mark.parametrize("loss_type", ["dapo", "gspo", "gmpo", "vespo"])
def test_a_step_never_waits_for_the_device(backend, no_sync, loss_type, gathered):
    head, rows = on_gpu_with_rows(gathered)
    spec = LossSpec(loss_type=loss_type, beta=0.1, is_correction="token_truncate")
    loss_of(head, rows, spec=spec)
    with no_sync():
        for chunk_bytes in (None, 100 * 211 * 8):
            out = loss_of(head, rows, spec=spec, chunk_bytes=chunk_bytes)
            (out.loss * 0.5).backward()
            with torch.no_grad():
                linear_logps(head.hidden, head.weight, head.targets, return_entropy=True)


def test_accumulation_adds_without_a_wait_and_without_a_second_buffer(backend, no_sync):
    head, rows = on_gpu_with_rows()
    expected = torch.autograd.grad(loss_of(head, rows).loss, head.weight)[0]
    head.weight.main_grad = torch.zeros_like(head.weight, dtype=torch.float32)
    scale = torch.full((), 0.5, device="cuda")
    with no_sync():
        for _ in range(2):
            out = loss_of(head, rows, grad_scale=scale, accumulate_into="main_grad")
            out.loss.backward()
    assert head.weight.grad is None and head.hidden.grad is not None
    assert_close(head.weight.main_grad, expected.float(), 1e-2)


@pytest.mark.parametrize("gathered", [True, False], ids=["gathered", "masked_in_place"])
def test_a_compiled_caller_gets_the_eager_numbers(backend, gathered):
    head, rows = on_gpu_with_rows(gathered)
    spec = LossSpec(loss_type="gspo", beta=0.1, entropy_coef=0.01)
    torch._dynamo.reset()
    compiled = torch.compile(lambda: loss_of(head, rows, spec=spec), fullgraph=True)
    found, expected = compiled(), loss_of(head, rows, spec=spec)
    assert torch.equal(found.loss, expected.loss)
    pairs = zip(grads(found.loss, head), grads(expected.loss, head), strict=True)
    for a, b in pairs:
        assert torch.equal(a, b)


@pytest.fixture
def one_rank():
    dist.init_process_group(
        "nccl", rank=0, world_size=1, store=dist.HashStore(), device_id=torch.device("cuda", 0)
    )
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_sharded_vocabulary_merges_on_the_device(backend, one_rank, no_sync):
    head, rows = on_gpu_with_rows()
    vocab = VocabParallel.of_shard(head.weight, one_rank)
    options = {"chunk_bytes": 100 * 211 * 8}
    expected = grads(loss_of(head, rows, **options).loss, head)
    loss_of(head, rows, vocab=vocab)  # the communicator is made at its first use
    with no_sync():
        loss = loss_of(head, rows, vocab=vocab, **options).loss
        found = grads(loss, head)
    for a, b in zip(found, expected, strict=True):
        assert_close(a.float(), b.float(), 1e-2)


def test_bitwise_repeatable(backend):
    head, rows = on_gpu_with_rows()
    spec = LossSpec(loss_type="gspo")
    runs = [grads(loss_of(head, rows, spec=spec).loss, head) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)
