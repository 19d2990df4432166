"""Torch's default dtype and device are the user's: they change no result, and no tensor made here
follows them into memory that C code or a kernel reads.

Shapes: `N tokens . D hidden . V vocab`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from polaris_kernels import (
    LossRows,
    LossSpec,
    grpo_loss,
    linear_grpo_loss,
    linear_logps,
    release_workspace,
    selective_logps,
)
from polaris_kernels.backends import native_multiply, native_tiles

from .cases import Head, as_float32, make_head, make_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
N = 24
SPEC = LossSpec(loss_type="dapo", beta=0.1, entropy_coef=0.05, top_entropy_quantile=0.8)


@contextmanager
def defaults(dtype: torch.dtype | None, device: str | None) -> Iterator[None]:
    """Inside, torch makes tensors of that type and on that device where nobody names another."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    torch.set_default_device(device)
    # buffers of an earlier call would hide in what type and where new ones are made
    release_workspace()
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
        release_workspace()


OTHERS = pytest.mark.parametrize(
    ("dtype", "device"),
    [(torch.bfloat16, None), (torch.float64, None), (None, "meta")],
    ids=["bf16", "fp64", "meta"],
)


def everything(head: Head, rows: LossRows, chunk_bytes: int | None) -> list[torch.Tensor]:
    """Results and gradients of every function, of a trained head and of a frozen one."""
    found: list[torch.Tensor] = []

    def take(value: torch.Tensor, *leaves: torch.Tensor) -> None:
        found.extend((value, *torch.autograd.grad(value, leaves)))

    operands = (head.hidden, head.weight, head.targets)
    options = {"bias": head.bias, "chunk_bytes": chunk_bytes}
    out = linear_grpo_loss(*operands, rows=rows, spec=SPEC, **options)
    found.extend((out.logps, out.entropy, *out.metrics.values()))
    take(out.loss, *head.leaves)
    logps = linear_logps(*operands, return_entropy=True, **options)
    take(logps.logps.sum() + logps.entropy.sum(), *head.leaves)
    frozen = linear_logps(head.hidden, head.weight.detach(), head.targets, chunk_bytes=chunk_bytes)
    take(frozen.logps.sum(), head.hidden)
    # rows without a coefficient, and tokens without a loss
    plain = linear_grpo_loss(
        *operands, rows=LossRows(
            row_of_token=rows.row_of_token, num_rows=rows.num_rows,
            advantages=rows.advantages * (rows.advantages > 0),
        ), **options,
    )  # fmt: skip
    take(plain.loss, *head.leaves)
    nothing = (head.hidden[:0], head.weight, head.targets[:0])
    take(linear_logps(*nothing, bias=head.bias).logps.sum(), *head.leaves)
    logits = (head.hidden @ head.weight.t()).detach().requires_grad_()
    take(grpo_loss(logits, head.targets, rows=rows, spec=SPEC).loss, logits)
    take(selective_logps(logits, head.targets).logps.sum(), logits)
    return found


@OTHERS
@pytest.mark.parametrize("head_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["one_chunk", "chunks", "tiles"])
def test_no_default_changes_a_bit(cpu_backend, form, head_dtype, dtype, device, monkeypatch):
    if form == "tiles":
        monkeypatch.setattr(native_tiles, "_LEAST_BYTES", 0)
        monkeypatch.setattr(native_tiles, "_LEAST_COLUMNS", 16)
    head = make_head(N, 8, 33, bias=True).to(head_dtype)
    rows = as_float32(make_rows(head))
    budget = 7 * 33 * 4 if form == "chunks" else None
    expected = everything(head, rows, budget)
    with defaults(dtype, device):
        found = everything(head, rows, budget)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.device == b.device and a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@OTHERS
def test_the_speed_of_bf16_is_that_of_the_host_against_fp32(dtype, device, monkeypatch):
    seen = set()
    multiply = torch.mm

    def watch(a, b, *, out):
        seen.add((a.dtype, a.device.type))
        return multiply(a, b, out=out)

    monkeypatch.setattr(torch, "mm", watch)
    with defaults(dtype, device):
        native_multiply._bf16_share()
    assert seen == {(torch.bfloat16, "cpu"), (torch.float32, "cpu")}
