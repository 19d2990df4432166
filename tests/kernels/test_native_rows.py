"""The compiled row pass alone, at every instruction set this CPU has, against float64.

Shapes: `C rows . V columns`.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from polaris_kernels.backends import native_library
from polaris_kernels.backends.native_library import LibraryError, NativeLibrary
from polaris_kernels.backends.row_pass import RowCoefficients, RowStatistics
from polaris_kernels.problem import HeadProblem, make_problem
from polaris_kernels.testing import no_worse_than_torch

from .cases import assert_close
from .sparse import sparse_zeros

if not native_library.PATH.exists():
    pytest.skip(native_library.REBUILD, allow_module_level=True)

STORAGE = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7, "logit_scale": 1.5},
    "per_row": {"temperature": "per_row"},
    "bias": {"bias": True, "temperature": 1.3},
    "rounded": {"logits_dtype": "bf16", "bias": True},
    "softcap": {"softcap": 3.0, "temperature": 0.8, "logit_scale": 1.2},
    "all": {"softcap": 3.0, "bias": True, "logits_dtype": "bf16", "temperature": "per_row"},
}


@pytest.fixture(scope="module", params=["portable", "avx2", "avx512"])
def library(request):
    found = NativeLibrary()
    before = found.level
    try:
        found.set_level(request.param)
    except LibraryError:
        pytest.skip(f"this CPU or build has no {request.param}")
    assert found.level == request.param
    yield found
    found.set_level(before)


def problem_of(C: int, V: int, acc: torch.dtype = torch.float32, **options: Any) -> HeadProblem:
    g = torch.Generator().manual_seed(V)
    options = {"temperature": 1.0, "softcap": None, "logit_scale": 1.0} | options
    if options["temperature"] == "per_row":
        options["temperature"] = torch.linspace(0.5, 1.5, C)
    bias = torch.randn(V, generator=g) if options.pop("bias", False) else None
    return make_problem(
        torch.zeros(C, 1, dtype=acc),
        torch.zeros(V, 1, dtype=acc),
        torch.randint(V, (C,), generator=g),
        bias=bias,
        logits_dtype=options.pop("logits_dtype", "fp32"),
        chunk_bytes=None,
        caller="test",
        **options,
    )


def exact_z(problem: HeadProblem, raw: Tensor, dtype: torch.dtype) -> Tensor:
    """z from its equations, with the library's roundings but no others."""
    s = raw.to(problem.acc_dtype)
    if problem.bias is not None:
        s = s + problem.bias
    if problem.rounds_logits:
        s = s.bfloat16()
    u = s.to(dtype) * problem.logit_scale
    if problem.softcap is not None:
        u = problem.softcap * torch.tanh(u / problem.softcap)
    T = problem.temperature
    return u / (T.to(dtype)[:, None] if isinstance(T, Tensor) else T)


def wanted(problem: HeadProblem, raw: Tensor, weights: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """logp, entropy, lse, and the gradient of their weighted sum by the raw logits, by autograd."""
    z = exact_z(problem, raw, dtype)
    T = problem.temperature_of(slice(0, raw.shape[0]))
    slope = problem.logit_scale / T * torch.ones_like(z)
    if problem.softcap is not None:
        slope = slope * (1 - (z * T / problem.softcap) ** 2)
    # the derivative ignores the rounding of the logits
    shifted = torch.zeros(raw.shape, dtype=dtype, requires_grad=True)
    log_p = (z + shifted * slope).log_softmax(1)
    logp = log_p.gather(1, problem.targets[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(1)
    lse = (z + shifted * slope).logsumexp(1)
    total = sum((w * x).sum() for w, x in zip(weights.to(dtype), (logp, entropy, lse), strict=True))
    (gradient,) = torch.autograd.grad(total, shifted)
    return [x.detach() for x in (logp, entropy, lse, gradient)]


def test_an_empty_list_of_rows_is_not_all_of_them(library):
    problem, z = problem_of(3, 20), torch.randn(3, 20)
    nothing = torch.zeros(3, dtype=torch.bool).nonzero().squeeze(1)
    untouched = RowStatistics(*torch.full((4, 3), 7.0))
    everything = slice(0, 3), slice(0, 20)
    library.statistics(problem, z, *everything, untouched, accumulate=False, listed=nothing)
    assert all((part == 7).all() for part in (untouched.maximum, untouched.sum_exp))
    before, ones = z.clone(), RowCoefficients(torch.ones(3), None, None)
    library.gradient(problem, z, slice(0, 3), torch.zeros(3), ones, out=z, rows=nothing)
    assert torch.equal(z, before)


def run(
    library: NativeLibrary, problem: HeadProblem, z: Tensor, weights: Tensor, **options: Any
) -> list[Tensor]:
    """The same from the library; the gradient replaces z unless `out` is given."""
    from polaris_kernels.backends.chunks import finish
    from polaris_kernels.backends.row_pass import row_coefficients, shifted_targets
    from polaris_kernels.objective import TokenGradients

    C, V = z.shape
    rows = RowStatistics.empty(C, torch.empty(0, dtype=problem.acc_dtype))
    step = options.pop("tile", V)
    for first in range(0, V, step):
        columns = slice(first, min(first + step, V))
        library.statistics(problem, z[:, columns], slice(0, C), columns, rows, accumulate=first > 0)
    rows = shifted_targets(rows)
    statistics = finish(rows)
    T = problem.temperature_of(slice(0, C))
    factors = row_coefficients(
        TokenGradients(*weights.to(problem.acc_dtype)),
        rows,
        statistics.entropy,
        problem.logit_scale / T,
    )
    out = options.pop("out", z)
    library.gradient(problem, z, slice(0, C), rows.maximum, factors, out=out, **options)
    return [statistics.logp, statistics.entropy, statistics.lse, out]


def weights_of(C: int) -> Tensor:
    return torch.randn(3, C, generator=torch.Generator().manual_seed(C), dtype=torch.float64)


NAMES = ("logp", "entropy", "lse", "gradient")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_no_further_from_float64_than_torch(library, dtype, options):
    C, V = 5, 4_500
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    problem = problem_of(C, V, acc, **options)
    raw = (torch.randn(C, V, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    if problem.rounds_logits and dtype == torch.bfloat16:
        pytest.skip("bf16 logits are rounded already")
    weights = weights_of(C)
    exact, plain = (wanted(problem, raw, weights, d) for d in (torch.float64, acc))
    ours = run(library, problem, raw.clone(), weights)
    for name, a, b, c in zip(NAMES, ours, plain, exact, strict=True):
        if dtype == torch.float64:
            assert_close(a, c, 1e-13, name)
        else:
            no_worse_than_torch(a, b.to(dtype) if name == "gradient" else b, c, name=name)


@pytest.mark.parametrize("V", [1, 2, 7, 15, 16, 17, 33, 2_047, 2_048, 2_049, 4_097, 50_257])
def test_every_tail_length(library, V):
    problem = problem_of(3, V, temperature=0.9)
    raw = torch.randn(3, V, generator=torch.Generator().manual_seed(V)) * 3
    # what lies behind a row must neither be read into it nor be written
    memory = torch.full((3, V + 5), torch.nan)
    memory[:, :V] = raw
    weights = weights_of(3)
    exact, plain = (wanted(problem, raw, weights, d) for d in (torch.float64, torch.float32))
    ours = run(library, problem, memory[:, :V], weights)
    for name, a, b, c in zip(NAMES, ours, plain, exact, strict=True):
        # one column: logp and entropy are exactly 0, which is no scale for an error
        if V == 1:
            assert_close(a.double(), c, 1e-6, name)
        else:
            no_worse_than_torch(a, b, c, name=name)
    assert memory[:, V:].isnan().all()


@pytest.mark.parametrize("tile", [1, 16, 33, 2_048])
def test_tiles_of_the_vocabulary_add_up(library, tile):
    problem = problem_of(4, 2_100 if tile > 1 else 40, bias=True)
    V = problem.vocab_size
    raw = torch.randn(4, V, generator=torch.Generator().manual_seed(3)) * 3
    weights = weights_of(4)
    exact, plain = (wanted(problem, raw, weights, d) for d in (torch.float64, torch.float32))
    ours = run(library, problem, raw.clone(), weights, tile=tile)
    for name, a, b, c in zip(NAMES, ours, plain, exact, strict=True):
        no_worse_than_torch(a, b, c, name=name, factor=4.0)


def test_the_exponential_is_as_good_as_torchs(library):
    x = torch.cat([torch.linspace(-87, 0, 400_001), -torch.logspace(-30, 0, 1001)])[None]
    out = torch.empty_like(x)
    problem = problem_of(1, x.shape[1])
    one = RowCoefficients(torch.ones(1, 1), None, None)
    library.gradient(problem, x, slice(0, 1), torch.zeros(1), one, out=out)
    relative = (out.double() / x.double().exp() - 1).abs()
    assert relative.max() < 1.5e-7


def test_far_logits_have_probability_zero_and_no_nan(library):
    x = torch.tensor([[0.0, -88.1, -200.0, -1e30, -torch.inf] * 7])
    problem = problem_of(1, x.shape[1])
    found = run(library, problem, x, torch.ones(3, 1))
    assert all(part.isfinite().all() for part in found)
    assert (found[3].view(7, 5)[:, 1:].abs() < 1e-30).sum() >= 27


def test_a_whole_block_of_minus_infinity_is_skipped(library):
    x = torch.full((1, 5_000), -torch.inf)
    x[0, 4_990:] = 1.0
    problem = problem_of(1, 5_000)
    rows = RowStatistics.empty(1, x)
    library.statistics(problem, x, slice(0, 1), slice(0, 5_000), rows, accumulate=False)
    assert rows.maximum == 1 and rows.sum_exp == 10 and rows.sum_z_exp == 0


@pytest.mark.parametrize("column", [0, 7, 2_500, 4_999])
def test_nan_reaches_every_statistic_of_its_row_and_no_other(library, column):
    x = torch.randn(3, 5_000, generator=torch.Generator().manual_seed(3))
    # a payload in the low bits must not turn the nan into a number
    x[1, column] = torch.tensor(0x7FC00123, dtype=torch.int32).view(torch.float32)
    found = run(library, problem_of(3, 5_000), x, weights_of(3))
    for part in found:
        assert part[1].isnan().all() and part[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_value_is_read_right(library, dtype):
    z = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)[:, None]
    rows = RowStatistics.empty(2**16, torch.empty(0))
    problem = problem_of(2**16, 1)
    library.statistics(problem, z, slice(0, 2**16), slice(0, 1), rows, accumulate=False)
    assert torch.equal(rows.target.nan_to_num(12345.0), z[:, 0].float().nan_to_num(12345.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_values_are_rounded_to_16_bits_as_torch_rounds_them(library, dtype):
    pattern = torch.arange(0, 2**32, 65_537 // 2 + 1, dtype=torch.int64)
    edges = torch.arange(0, 2**16)[:, None] * 2**16 + torch.tensor([0, 0x7FFF, 0x8000, 0x8001])
    half = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).float()
    halfway = half + torch.nextafter(half, half * 2) / 2**12
    values = torch.cat([pattern, edges.reshape(-1)])
    values = torch.cat([(values - 2**31).to(torch.int32).view(torch.float32), half, halfway])
    C = values.numel()
    out = torch.empty(C, 1, dtype=dtype)
    # exp(0) * alpha is alpha
    library.gradient(
        problem_of(C, 1),
        torch.zeros(C, 1),
        slice(0, C),
        torch.zeros(C),
        RowCoefficients(values[:, None], None, None),
        out=out,
    )
    expected = values.to(dtype)
    assert torch.equal(out[:, 0].isnan(), expected.isnan())
    assert torch.equal(out[:, 0].nan_to_num(0.0), expected.nan_to_num(0.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_gradients_fit_into_the_first_half_of_each_row(library, dtype):
    problem = problem_of(6, 1_003)
    raw = torch.randn(6, 1_003, generator=torch.Generator().manual_seed(3))
    weights = weights_of(6)
    apart = torch.empty(6, 1_003, dtype=dtype)
    run(library, problem, raw.clone(), weights, out=apart)
    z = raw.clone()
    run(library, problem, z, weights, out=z.view(dtype)[:, :1_003])
    assert torch.equal(z.view(dtype)[:, :1_003], apart)


def test_listed_rows_only(library):
    problem = problem_of(9, 70)
    raw = torch.randn(9, 70, generator=torch.Generator().manual_seed(3))
    weights = weights_of(9)
    whole, some = raw.clone(), raw.clone()
    run(library, problem, whole, weights)
    rows = torch.tensor([1, 2, 7])
    run(library, problem, some, weights, rows=rows)
    assert torch.equal(some[rows], whole[rows])
    others = torch.tensor([0, 3, 4, 5, 6, 8])
    assert torch.equal(some[others], raw[others])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_are_packed_in_place(library, dtype, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    data = torch.arange(300 * 1_001).view(300, 1_001).to(dtype)
    rows = torch.arange(300)[torch.rand(300, generator=torch.Generator().manual_seed(3)) < 0.4]
    expected = data[rows]
    library.pack_rows(data[:, :1_000], rows)
    assert torch.equal(data[: len(rows), :1_000], expected[:, :1_000])


def test_bf16_parts_are_added_in_float32(library):
    total = torch.randn(5, 77, generator=torch.Generator().manual_seed(3))
    part = torch.randn(5, 77, generator=torch.Generator().manual_seed(4)).bfloat16()
    expected = total + part.float()
    library.add_bf16(total, part)
    assert torch.equal(total, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_thread_count_does_not_change_a_bit(library, dtype, monkeypatch):
    problem = problem_of(64, 3_000, softcap=5.0, bias=True)
    raw = torch.randn(64, 3_000, generator=torch.Generator().manual_seed(3)).to(dtype)
    results = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        results.append(run(library, problem, raw.clone(), weights_of(64)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_more_than_2_to_the_31_elements_apart(library, dtype):
    V, stride = 50, 2**31 + 64
    z = sparse_zeros(stride + V, dtype=dtype).as_strided((2, V), (stride, 1))
    raw = torch.randn(2, V, generator=torch.Generator().manual_seed(3)).to(dtype)
    z.copy_(raw)
    near = run(library, problem_of(2, V), raw, weights_of(2))
    far = run(library, problem_of(2, V), z, weights_of(2))
    for a, b in zip(near, far, strict=True):
        assert torch.equal(a, b)
    z.zero_()
    z[1] = torch.arange(V).to(dtype)
    library.pack_rows(z, torch.tensor([1]))
    assert torch.equal(z[0], torch.arange(V).to(dtype))
