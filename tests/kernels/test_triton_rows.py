"""The row kernels against float64: every flag, every kind of tail, nothing written where it must
not be. Without a GPU they run in Triton's interpreter, a few milliseconds a row.

Shapes: `C rows . V vocab`.
"""

import pytest
import torch
from torch import Tensor

from polaris_kernels.objective import TokenGradients
from polaris_kernels.testing import no_worse_than_torch

from .row_cases import PARTS, Rows, make_rows, plain

pytest.importorskip("triton")
# Triton is imported here: `conftest` has chosen the interpreter by now where there is no GPU
from polaris_kernels.backends import triton_launch
from polaris_kernels.backends.triton_launch import RowShape, RowState, Scaling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# with 8 threads a statistics tile is 256 columns and a gradient block 128
ONE_TAIL, FULL, SEVERAL = 33, 256, 600


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    monkeypatch.setattr(triton_launch, "THREADS", 8)


def scaling(rows: Rows) -> Scaling:
    moved = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in rows.options.items()}
    return Scaling.make(moved.pop("temperature"), **moved)


def on_device(gradients: TokenGradients) -> TokenGradients:
    parts = (getattr(gradients, p) for p in PARTS)
    return TokenGradients(*(None if part is None else part.to(DEVICE) for part in parts))


def reduce(rows: Rows, logits: Tensor, kept: Tensor | None = None) -> RowState:
    state = RowState.empty(logits.shape[0], logits)
    triton_launch.row_statistics(logits, rows.targets.to(DEVICE), scaling(rows), state, kept)
    return state


def differentiate(
    rows: Rows, logits: Tensor, state: RowState, out: Tensor, index: Tensor | None = None
) -> None:
    targets, gradients = rows.targets.to(DEVICE), on_device(rows.gradients)
    triton_launch.row_gradients(logits, targets, scaling(rows), state, gradients, out, index)


def check(rows: Rows, out_dtype: torch.dtype | None = None) -> None:
    """Statistics and gradient, in place and in rows that are further apart than V."""
    C, V = rows.logits.shape
    out_dtype = out_dtype or rows.logits.dtype
    acc = torch.float64 if rows.logits.dtype == torch.float64 else torch.float32
    exact, exact_gradient = plain(rows, torch.float64)
    theirs, their_gradient = plain(rows, acc)
    buffer = torch.full((C, V + 5), torch.nan, dtype=rows.logits.dtype, device=DEVICE)
    logits = buffer[:, :V]
    logits.copy_(rows.logits)
    state = reduce(rows, logits)
    assert torch.equal(logits.cpu(), rows.logits)
    for name, a, b in zip(PARTS, theirs, exact, strict=True):
        no_worse_than_torch(getattr(state, name).cpu(), a, b, name=name)
    out = triton_launch.narrow_view(logits, out_dtype)
    differentiate(rows, logits, state, out)
    assert out.dtype == out_dtype and out.data_ptr() == buffer.data_ptr()
    no_worse_than_torch(out.cpu(), their_gradient.to(out_dtype), exact_gradient, name="gradient")
    assert buffer[:, V:].isnan().all()


@pytest.mark.parametrize("V", [1, 7, ONE_TAIL, FULL, SEVERAL])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_worse_than_plain_torch_at_any_width(dtype, V):
    check(make_rows(3, V, dtype))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"per_row": True},
        {"logit_scale": -1.3, "temperature": 1.1},
        {"softcap": 5.0, "temperature": 0.8, "logit_scale": 1.2},
        {"bias": True, "per_row": True, "softcap": 2.0},
        {"bias": True, "rounds": True},
        {"spread": 30.0},
        {"spread": 1e-3},
        {"offset": -500.0},
        {"offset": 500.0, "temperature": 0.7},
    ],
    ids=lambda o: "-".join(o),
)
def test_every_scaling(options):
    check(make_rows(3, 300, torch.float32, **options))


@pytest.mark.parametrize("parts", [("logp",), ("entropy",), ("lse",), ("logp", "entropy")])
def test_any_subset_of_the_three_floats(parts):
    check(make_rows(2, ONE_TAIL, torch.float32, parts=parts))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fp32_logits_become_half_gradients_in_their_own_memory(dtype):
    check(make_rows(3, SEVERAL, torch.float32), dtype)


def test_float64_rows_are_exact():
    rows = make_rows(2, 300, torch.float64, softcap=5.0, per_row=True, bias=True)
    state = reduce(rows, rows.logits.to(DEVICE))
    out = torch.empty(2, 300, dtype=torch.float64, device=DEVICE)
    differentiate(rows, rows.logits.to(DEVICE), state, out)
    outputs, gradient = plain(rows, torch.float64)
    for name, exact in zip(PARTS, outputs, strict=True):
        assert (getattr(state, name).cpu() - exact).abs().max() < 1e-13
    assert (out.cpu() - gradient).abs().max() < 1e-13


def test_indexed_rows_go_to_other_memory():
    rows = make_rows(4, ONE_TAIL, torch.float32)
    logits = rows.logits.to(DEVICE)
    state = reduce(rows, logits)
    dense = torch.empty_like(logits)
    differentiate(rows, logits, state, dense)
    index = torch.tensor([3, 1], device=DEVICE)
    out = torch.full((2, ONE_TAIL), torch.nan, device=DEVICE)
    differentiate(rows, logits, state, out, index)
    assert torch.equal(out, dense[index])


def test_a_row_without_coefficients_is_never_read():
    rows = make_rows(3, ONE_TAIL, torch.float32)
    for part in PARTS:
        getattr(rows.gradients, part)[1] = 0.0
    logits = rows.logits.clone().to(DEVICE)
    logits[1] = torch.nan
    kept = torch.tensor([1, 0, 1], device=DEVICE)
    state = reduce(rows, logits, kept)
    for name in PARTS:
        assert float(getattr(state, name)[1]) == 0.0
    differentiate(rows, logits, state, logits)
    assert (logits[1] == 0).all() and logits.isfinite().all()
    exact = plain(rows, torch.float64)[1]
    assert (logits.cpu() - exact).abs().max() < 1e-5


@pytest.mark.parametrize("target", [-100, -1, ONE_TAIL, 2**40])
def test_a_target_outside_the_vocabulary_is_nan_and_reads_nothing(target):
    rows = make_rows(2, ONE_TAIL, torch.float32)
    rows.targets[0] = target
    state = reduce(rows, rows.logits.to(DEVICE))
    assert state.logp.cpu().isnan().tolist() == [True, False]
    assert state.entropy.isfinite().all() and state.lse.isfinite().all()


def test_nan_in_a_row_is_loud_and_stays_there():
    rows = make_rows(2, FULL, torch.float32)
    rows.logits[0, 200] = torch.nan
    state = reduce(rows, rows.logits.to(DEVICE))
    for name in PARTS:
        assert getattr(state, name).cpu().isnan().tolist() == [True, False]


def test_bitwise_repeatable_and_independent_of_the_other_rows():
    rows = make_rows(3, SEVERAL, torch.float32)
    logits = rows.logits.to(DEVICE)
    first, second = reduce(rows, logits), reduce(rows, logits)
    alone = RowState.empty(1, logits)
    triton_launch.row_statistics(logits[2:], rows.targets[2:].to(DEVICE), scaling(rows), alone)
    for name in (*PARTS, "shift", "total"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert torch.equal(getattr(first, name)[2:], getattr(alone, name))


def test_no_rows_launch_nothing():
    rows = make_rows(0, 7, torch.float32)
    state = reduce(rows, rows.logits.to(DEVICE))
    differentiate(rows, rows.logits.to(DEVICE), state, torch.empty(0, 7, device=DEVICE))


def test_row_bases_are_64_bit():
    # the third row starts 2^31 elements behind the first; only the rows' own pages are ever touched
    stride = 2**30 + 64
    memory = torch.empty(2 * stride + 16, dtype=torch.bfloat16, device=DEVICE)
    logits = memory.as_strided((3, 7), (stride, 1))
    rows = make_rows(3, 7, torch.bfloat16)
    logits.copy_(rows.logits)
    differentiate(rows, logits, reduce(rows, logits), logits)
    exact = plain(rows, torch.float64)[1]
    assert (logits.double().cpu() - exact).abs().max() < 2e-2


@pytest.mark.parametrize("V", [1, 7, 50_257, 151_936, 248_320])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_block_sizes_are_powers_of_two_that_fit(V, size, monkeypatch):
    monkeypatch.setattr(triton_launch, "THREADS", 128)
    shape = RowShape.of(V, size)
    for value in (shape.items, shape.lanes, shape.block, shape.num_warps):
        assert value >= 1 and value & (value - 1) == 0
    assert shape.num_warps * 32 <= 128
    assert shape.items * shape.lanes < 2 * max(V, 2) and shape.block < 2 * max(V, 2)
    # 16 bytes a load, and no more registers than 32 logits a thread
    assert shape.items * shape.lanes <= 32 * 32 * shape.num_warps


def test_the_triton_backend_says_what_it_needs(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="leave `backend` out there, or set TRITON_INTERPRET=1"):
        triton_launch.check_device(torch.device("cpu"))
