"""The CUDA row kernels' own source against float64, run on the CPU thread by thread: every scaling,
every width of cluster, every kind of tail, nothing written where it must not be.

Shapes: `C rows . V vocab`.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from polaris_kernels.backends.row_kernels import CudaRows
from polaris_kernels.backends.triton_launch import RowState, Scaling, narrow_view
from polaris_kernels.foreseen import ClippedSurrogate, RowRule
from polaris_kernels.objective import TokenGradients
from polaris_kernels.testing import no_worse_than_torch

from . import cluster_numpy
from .cuda_emulator import Emulator, aligned, compile_emulator
from .row_cases import PARTS, Rows, make_rows, plain

# with 32 threads a tile of four vectors a thread is 1,024 bf16 or 512 fp32 columns
ONE_TAIL, SEVERAL = 37, 3_003


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_emulator(tmp_path_factory.mktemp("emulator"))


def run(
    library: Any, rows: Rows, cluster: int, *, out_dtype: torch.dtype | None = None,
    rule: RowRule | None = None, threads: int = 32, order: int = 0,
) -> tuple[RowState, Tensor]:  # fmt: skip
    """Statistics and gradient in place; cluster 0: by two kernels."""
    emulator = Emulator(library, threads, order, cluster)
    kernels = CudaRows(emulator)
    C, V = rows.logits.shape
    logits = aligned(C, V, rows.logits.dtype, extra=5)
    logits.copy_(rows.logits)
    behind = logits.as_strided(
        (C, logits.stride(0) - V), logits.stride(), logits.storage_offset() + V
    )
    options = dict(rows.options)
    scaling = Scaling.make(options.pop("temperature"), **options)
    state = RowState.empty(C, logits)
    out = narrow_view(logits, out_dtype or logits.dtype)
    kernels.both(logits, rows.targets, scaling, state, rule or RowRule(rows.gradients), out)
    assert emulator.calls == (["row_pass"] if cluster else ["statistics", "gradient"])
    assert behind.isnan().all()
    return state, out


def check(library: Any, rows: Rows, cluster: int, **options: Any) -> None:
    """No worse than fp32 torch."""
    exact, exact_gradient = plain(rows, torch.float64)
    theirs, their_gradient = plain(rows, torch.float32)
    state, out = run(library, rows, cluster, **options)
    for name, a, b in zip(PARTS, theirs, exact, strict=True):
        no_worse_than_torch(getattr(state, name), a, b, name=name)
    no_worse_than_torch(out, their_gradient.to(out.dtype), exact_gradient, name="gradient")


@pytest.mark.parametrize("cluster", [0, 1, 2, 4, 8])
@pytest.mark.parametrize("V", [1, 7, ONE_TAIL, SEVERAL])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_worse_than_plain_torch_at_any_width(library, dtype, V, cluster):
    check(library, make_rows(2, V, dtype), cluster)


@pytest.mark.parametrize("cluster", [0, 2])
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
def test_every_scaling(library, options, cluster):
    check(library, make_rows(2, 700, torch.float32, **options), cluster)


@pytest.mark.parametrize("parts", [("logp",), ("entropy",), ("lse",), ("logp", "entropy")])
def test_any_subset_of_the_three_floats(library, parts):
    check(library, make_rows(2, ONE_TAIL, torch.float32, parts=parts), 2)


@pytest.mark.parametrize("cluster", [0, 1, 4])
def test_fp32_logits_become_bf16_gradients_in_their_own_memory(library, cluster):
    check(library, make_rows(3, SEVERAL, torch.float32), cluster, out_dtype=torch.bfloat16)


@pytest.mark.parametrize("cluster", [0, 2, 8])
def test_no_order_of_the_threads_changes_a_bit(library, cluster):
    rows = make_rows(1, SEVERAL, torch.float32)
    options = {"out_dtype": torch.bfloat16, "threads": 64}
    state, out = run(library, rows, cluster, **options)
    for order in (1, 2, 3):
        again, moved = run(library, rows, cluster, order=order, **options)
        assert torch.equal(moved, out)
        assert all(torch.equal(getattr(again, n), getattr(state, n)) for n in (*PARTS, "total"))


def test_indexed_rows_go_to_other_memory(library):
    rows = make_rows(4, ONE_TAIL, torch.float32)
    state, dense = run(library, rows, 0)
    kernels = CudaRows(Emulator(library))
    logits, out = aligned(4, ONE_TAIL, torch.float32), aligned(2, ONE_TAIL, torch.float32)
    logits.copy_(rows.logits)
    index = torch.tensor([3, 1])
    scaling = Scaling.make(rows.options["temperature"])
    kernels.gradients(logits, rows.targets, scaling, state, rows.gradients, out, index)
    assert torch.equal(out, dense[index]) and torch.equal(logits, rows.logits)


def test_rows_that_are_not_kept_are_never_read(library):
    rows = make_rows(3, ONE_TAIL, torch.bfloat16)
    logits = aligned(3, ONE_TAIL, torch.bfloat16)
    logits.copy_(rows.logits)
    logits[1] = torch.nan
    kernels, state = CudaRows(Emulator(library)), RowState.empty(3, logits)
    kept = torch.tensor([True, False, True])
    kernels.statistics(logits, rows.targets, Scaling.make(1.0), state, kept)
    assert [float(getattr(state, n)[1]) for n in (*PARTS, "shift", "total")] == [0, 0, 0, 0, 1]
    for part in PARTS:
        getattr(rows.gradients, part)[1] = 0.0
    kernels.gradients(logits, rows.targets, Scaling.make(1.0), state, rows.gradients, logits)
    assert (logits[1] == 0).all() and logits.isfinite().all()


@pytest.mark.parametrize("cluster", [0, 4])
def test_a_row_without_coefficients_gets_zeros(library, cluster):
    rows = make_rows(2, SEVERAL, torch.float32)
    for part in PARTS:
        getattr(rows.gradients, part)[1] = 0.0
    rows.logits[1, 5] = torch.nan
    state, out = run(library, rows, cluster)
    assert (out[1] == 0).all() and (out[0] != 0).any() and state.logp.isnan().tolist() == [0, 1]


@pytest.mark.parametrize("target", [-100, -1, ONE_TAIL, 2**40])
@pytest.mark.parametrize("cluster", [0, 2])
def test_a_target_outside_the_vocabulary_is_nan_and_reads_nothing(library, target, cluster):
    rows = make_rows(2, ONE_TAIL, torch.float32)
    rows.targets[0] = target
    state, _ = run(library, rows, cluster)
    assert state.logp.isnan().tolist() == [True, False]
    assert state.entropy.isfinite().all() and state.lse.isfinite().all()


def test_nan_in_a_row_is_loud_and_stays_there(library):
    rows = make_rows(2, SEVERAL, torch.bfloat16)
    rows.logits[0, 2_000] = torch.nan
    state, out = run(library, rows, 4)
    for name in PARTS:
        assert getattr(state, name).isnan().tolist() == [True, False]
    assert out[0].isnan().all() and out[1].isfinite().all()


@pytest.mark.parametrize("kl_slope", ["none", "k1", "abs", "k2", "k3"])
@pytest.mark.parametrize("cluster", [0, 2])
def test_the_clipped_surrogate_is_differentiated_on_the_chip(library, kl_slope, cluster):
    C = 24
    rows = make_rows(C, ONE_TAIL, torch.float32, parts=("entropy",))
    logp = plain(rows, torch.float64)[0][0]
    g = torch.Generator().manual_seed(3)
    spread = 0.8 * torch.rand(C, generator=g, dtype=torch.float64) - 0.4
    old, ref = logp + spread, logp + 0.5 * torch.randn(C, generator=g, dtype=torch.float64)
    A, w = torch.randn(C, generator=g).double(), torch.rand(C, generator=g).double()
    # the loss itself, by autograd
    leaf = logp.clone().requires_grad_()
    r, d = (leaf - old).exp(), leaf - ref
    kl = {"none": 0 * d, "k1": d, "abs": d.abs(), "k2": d * d / 2, "k3": (-d).exp() + d - 1}
    surrogate = torch.minimum(r.clamp(max=1.3) * A, r.clamp(0.9, 1.2) * A)
    loss = (-w * surrogate + 0.3 * w * kl[kl_slope]).sum()
    (expected,) = torch.autograd.grad(loss, leaf)
    if kl_slope == "none":
        assert 0.1 < float((expected == 0).double().mean()) < 0.9
    rule = RowRule(
        rows.gradients,
        ClippedSurrogate(
            advantages=A, weight=w, old_logps=old, low=0.9, high=1.2, cap=1.3,
            kl_slope=kl_slope, ref_logps=ref, kl_weight=0.3 * w,
        ),
    )  # fmt: skip
    _, out = run(library, rows, cluster, rule=rule)
    both = TokenGradients(logp=expected, entropy=rows.gradients.entropy)
    exact = plain(replace(rows, gradients=both), torch.float64)[1]
    assert float((out - exact).abs().max()) < 2e-6 * float(exact.abs().max()) + 1e-6


@pytest.mark.parametrize("kl_slope", ["k2", "k3"])
@pytest.mark.parametrize("cluster", [0, 2])
def test_a_kl_of_weight_0_may_be_infinite(library, kl_slope, cluster):
    rows = make_rows(2, ONE_TAIL, torch.float32, parts=())
    # the last row carries no loss, and its target is banned
    rows.logits[1, rows.targets[1]] = -torch.inf
    once = torch.tensor([1.0, 0.0])
    rule = RowRule(
        TokenGradients(logp=None),
        ClippedSurrogate(
            advantages=once, weight=once, old_logps=torch.zeros(2), low=0.9, high=1.2,
            kl_slope=kl_slope, ref_logps=torch.zeros(2), kl_weight=once,
        ),
    )  # fmt: skip
    state, out = run(library, rows, cluster, rule=rule)
    assert state.logp[1] == -torch.inf
    assert (out[1] == 0).all() and out[0].isfinite().all() and (out[0] != 0).any()


@pytest.mark.parametrize("cluster", [1, 2, 8])
@pytest.mark.parametrize("spread", [3.0, 40.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("V", [ONE_TAIL, 1_501])
def test_the_algorithm_line_by_line_in_numpy(library, V, spread, cluster):
    rows = make_rows(1, V, torch.float32, spread=spread, temperature=0.8)
    given = tuple(float(getattr(rows.gradients, p)) for p in PARTS)
    found = cluster_numpy.row_pass(
        rows.logits[0].numpy(), int(rows.targets[0]), given, 1 / 0.8, K=cluster, T=32
    )
    # every block ends with the same bits
    assert (found.sums == found.sums[0]).all()
    outputs, gradient = plain(rows, torch.float64)
    theirs, their_gradient = plain(rows, torch.float32)
    for name, plain_32, exact in zip(PARTS, theirs, outputs, strict=True):
        ours = torch.tensor([float(getattr(found, name))])
        no_worse_than_torch(ours, plain_32, exact, name=name)
    made = torch.from_numpy(found.gradient)[None]
    no_worse_than_torch(made, their_gradient, gradient, name="gradient")
    # and the source does what these lines do, down to the last bits of exp2
    state, out = run(library, rows, cluster)
    torch.testing.assert_close(out, made, rtol=2e-5, atol=1e-7)
    for name in PARTS:
        ours = torch.tensor([float(getattr(found, name))])
        torch.testing.assert_close(getattr(state, name), ours, rtol=1e-6, atol=2e-6)
