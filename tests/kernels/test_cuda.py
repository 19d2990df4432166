"""The torch backend on a GPU: the same numbers, and no wait for the device inside a step."""

from dataclasses import replace

import pytest
import torch

from polaris_kernels import LossSpec, linear_grpo_loss, linear_logps
from polaris_kernels.testing import no_worse_than_torch

from .cases import Head, as_float32, grads, make_head, make_rows, reference_loss

pytestmark = pytest.mark.gpu


def on_gpu(head: Head, dtype: torch.dtype) -> Head:
    moved = head.to(dtype)
    hidden, weight = (x.detach().cuda().requires_grad_() for x in (moved.hidden, moved.weight))
    return Head(hidden, weight, None, head.targets.cuda(), head.options)


@pytest.mark.parametrize("chunk_bytes", [None, 100 * 211 * 8], ids=["one_chunk", "many_chunks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gathered", [True, False], ids=["gathered", "masked_in_place"])
@pytest.mark.parametrize("loss_type", ["dapo", "gspo"])
def test_loss_and_gradients(loss_type, gathered, dtype, chunk_bytes):
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


@pytest.mark.parametrize("gathered", [True, False], ids=["gathered", "masked_in_place"])
@pytest.mark.parametrize("loss_type", ["dapo", "gspo", "gmpo", "vespo"])
def test_a_step_never_waits_for_the_device(loss_type, gathered):
    head = on_gpu(make_head(300, 64, 211), torch.bfloat16)
    rows = as_float32(make_rows(make_head(300, 64, 211)))
    index = rows.completion_mask.nonzero().squeeze(1) if gathered else None
    rows = replace(rows, token_index=index, denominator=200.0).to("cuda")
    spec = LossSpec(loss_type=loss_type, beta=0.1, is_correction="token_truncate")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for chunk_bytes in (None, 100 * 211 * 8):
            out = linear_grpo_loss(
                head.hidden, head.weight, head.targets, rows=rows, spec=spec,
                chunk_bytes=chunk_bytes,
            )  # fmt: skip
            (out.loss * 0.5).backward()
            with torch.no_grad():
                linear_logps(head.hidden, head.weight, head.targets, return_entropy=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bitwise_repeatable():
    head = on_gpu(make_head(300, 64, 211), torch.bfloat16)
    rows = as_float32(make_rows(make_head(300, 64, 211))).to("cuda")
    spec = LossSpec(loss_type="gspo")
    runs = [
        grads(
            linear_grpo_loss(head.hidden, head.weight, head.targets, rows=rows, spec=spec).loss,
            head,
        )
        for _ in range(2)
    ]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)
