"""The matrix product of csrc/cpu, and who multiplies what on which CPU.

Shapes: `a (m, k) . b (k, n)`.
"""

import pytest
import torch

from polaris_kernels.backends import native_library, native_multiply
from polaris_kernels.backends.native_library import LibraryError, NativeLibrary
from polaris_kernels.backends.native_multiply import Multiplier
from polaris_kernels.testing import no_worse_than_torch

from .sparse import sparse_zeros

if not native_library.PATH.exists():
    pytest.skip(native_library.REBUILD, allow_module_level=True)

TYPES = [torch.float32, torch.bfloat16]
INTEL, AMD = "GenuineIntel", "AuthenticAMD"


@pytest.fixture(params=TYPES, ids=str)
def dtype(request):
    if not NativeLibrary().has_gemm(request.param):
        pytest.skip(f"this CPU or build has no {request.param} product")
    return request.param


@pytest.fixture
def library():
    found = NativeLibrary()
    before = found.level
    yield found
    found.set_level(before)


def operands(m, n, k, dtype, *, a_across=False, b_across=False):
    """a and b, dense along k, or across it: what a transposed matrix is."""
    g = torch.Generator().manual_seed(m + n + k)
    a, b = torch.randn(m, k, generator=g), torch.randn(n, k, generator=g)
    a, b = (x.to(dtype) for x in (a, b))
    a = a.t().contiguous().t() if a_across else a
    b = b.t().contiguous().t() if b_across else b
    return a, b.t()


def check(library, a, b, *, add=False):
    start = torch.randn(a.shape[0], b.shape[1], generator=torch.Generator().manual_seed(1))
    # what lies behind a row of the result must not be written
    memory = torch.full((a.shape[0], b.shape[1] + 5), torch.nan)
    memory[:, :-5] = start if add else torch.nan
    library.gemm(a, b, memory[:, :-5], add=add)
    base = start if add else torch.zeros_like(start)
    exact = base.double() + a.double() @ b.double()
    # one rounding a product, and of random signs: far below k eps, and a lost unit far above
    reach = base.double().abs() + a.double().abs() @ b.double().abs()
    unit = torch.finfo(torch.float32).eps
    assert ((memory[:, :-5] - exact).abs() <= (2 + a.shape[1] ** 0.5) * unit * reach).all()
    assert memory[:, -5:].isnan().all()
    return memory[:, :-5], base + a.float() @ b.float(), exact


@pytest.mark.parametrize("add", [False, True], ids=["set", "add"])
@pytest.mark.parametrize("b_across", [False, True], ids=["b_along", "b_across"])
@pytest.mark.parametrize("a_across", [False, True], ids=["a_along", "a_across"])
def test_every_layout_over_several_blocks_and_slices(library, dtype, a_across, b_across, add):
    # above kBlockRows, kBlockColumns and two slices of k, with a tail of each
    ours, plain, exact = check(
        library,
        *operands(1_070, 1_043, 1_037, dtype, a_across=a_across, b_across=b_across),
        add=add,
    )
    no_worse_than_torch(ours, plain, exact, factor=3.0)


@pytest.mark.parametrize("k", [1, 2, 3, 31, 33, 511, 513])
@pytest.mark.parametrize("m,n", [(1, 1), (1, 33), (11, 16), (12, 32), (13, 47), (97, 95)])
def test_every_tail(library, dtype, m, n, k):
    for a_across in (False, True):
        check(library, *operands(m, n, k, dtype, a_across=a_across, b_across=not a_across))


def test_rows_with_a_gap_between_them(library, dtype):
    a, b = operands(50, 60, 70, dtype)
    wide = torch.full((50, 140), torch.nan, dtype=dtype)
    wide[:, :70] = a
    found, expected = torch.empty(50, 60), torch.empty(50, 60)
    library.gemm(wide[:, :70], b, found, add=False)
    library.gemm(a, b, expected, add=False)
    assert torch.equal(found, expected)


def test_rows_more_than_2_to_the_31_elements_apart(library, dtype):
    a, b = operands(2, 40, 33, dtype)
    near = torch.empty(2, 40)
    library.gemm(a, b, near, add=False)
    stride = 2**31 + 64
    far_a = sparse_zeros(stride + 33, dtype=dtype).as_strided((2, 33), (stride, 1)).copy_(a)
    far = sparse_zeros(stride + 40, dtype=torch.float32).as_strided((2, 40), (stride, 1))
    library.gemm(far_a, b, far, add=False)
    assert torch.equal(far, near)


def test_neither_threads_nor_cuts_change_a_bit(library, dtype, monkeypatch):
    a, b = operands(300, 200, 1_100, dtype)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        out = torch.empty(300, 200)
        library.gemm(a, b, out, add=False)
        results.append(out)
    pieces = torch.empty(300, 200)
    for rows in (slice(0, 7), slice(7, 300)):
        library.gemm(a[rows], b[:, :130], pieces[rows, :130], add=False)
        library.gemm(a[rows], b[:, 130:], pieces[rows, 130:], add=False)
    assert all(torch.equal(results[0], other) for other in (*results[1:], pieces))


@pytest.fixture
def rounding(library):
    if not library.has_gemm(torch.bfloat16, torch.bfloat16):
        pytest.skip("this CPU or build has no product with a bf16 result")
    return library


def product(library, a, b, dtype, start=None):
    """In memory whose columns behind the result must stay as they are."""
    memory = torch.full((a.shape[0], b.shape[1] + 5), torch.nan, dtype=dtype)
    if start is not None:
        memory[:, :-5] = start
    library.gemm(a, b, memory[:, :-5], add=start is not None)
    assert memory[:, -5:].isnan().all()
    return memory[:, :-5]


@pytest.mark.parametrize("k", [1, 512, 513, 1_037])
@pytest.mark.parametrize("m,n", [(1, 1), (13, 47), (1_070, 1_043)])
def test_a_bf16_result_is_the_fp32_one_rounded(rounding, m, n, k):
    a, b = operands(m, n, k, torch.bfloat16, a_across=True)
    wide = product(rounding, a, b, torch.float32)
    assert torch.equal(product(rounding, a, b, torch.bfloat16), wide.bfloat16())


@pytest.mark.parametrize("k", [40, 1_037])
def test_a_sum_into_bf16_is_rounded_once(rounding, k):
    # the product alone would be rounded to a multiple of 1/2 near 100, the sum is near 0
    a, b = operands(30, 50, k, torch.bfloat16)
    wide = product(rounding, a, b, torch.float32)
    start = (-wide + 0.01 * torch.randn(30, 50)).bfloat16()
    exact = start.double() + a.double() @ b.double()
    found = product(rounding, a, b, torch.bfloat16, start)
    unit = torch.finfo(torch.float32).eps * k**0.5 * (a.double().abs() @ b.double().abs())
    assert ((found - exact).abs() <= torch.finfo(torch.bfloat16).eps / 2 * exact.abs() + unit).all()


def test_a_bf16_result_of_fp32_operands_is_refused(rounding):
    assert not rounding.has_gemm(torch.float32, torch.bfloat16)
    out = torch.empty(2, 2, dtype=torch.bfloat16)
    with pytest.raises(LibraryError, match="pk_gemm refused"):
        rounding.gemm(torch.ones(2, 2), torch.ones(2, 2), out, add=False)


def test_nan_and_infinity_reach_the_result(library, dtype):
    a, b = operands(14, 40, 20, dtype)
    a[3, 5], a[13, 0] = torch.nan, torch.inf
    out = torch.empty(14, 40)
    library.gemm(a, b, out, add=False)
    assert out[3].isnan().all() and not out[13].isfinite().any()
    assert out[[0, 1, 2, *range(4, 13)]].isfinite().all()


def test_other_levels_have_no_product(library):
    library.set_level("portable")
    assert not any(library.has_gemm(dtype) for dtype in TYPES)
    out = torch.empty(2, 2)
    with pytest.raises(LibraryError, match="pk_gemm refused"):
        library.gemm(torch.ones(2, 2), torch.ones(2, 2), out, add=False)
    Multiplier(library).into(out, torch.ones(2, 2), torch.ones(2, 2))
    assert (out == 2).all()


@pytest.mark.skipif(native_multiply.mkl_gemm() is None, reason="this torch has no MKL")
@pytest.mark.parametrize("a_across", [False, True], ids=["a_along", "a_across"])
@pytest.mark.parametrize("m,n,k", [(1, 1, 1), (5, 7, 1), (1, 9, 4), (6, 1, 3), (13, 17, 19)])
def test_mkl_takes_every_layout(m, n, k, a_across):
    a, b = operands(m, n, k, torch.bfloat16, a_across=a_across, b_across=not a_across)
    exact = a.double() @ b.double()
    for add in (False, True):
        out = torch.ones(m, n)
        native_multiply.mkl_multiply(a, b, out, add=add)
        assert torch.allclose(out.double() - int(add), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(native_multiply.mkl_gemm() is None, reason="this torch has no MKL")
@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize("form", ["expanded", "sliding"])
def test_rows_that_share_memory_are_read_as_they_are(side, form, monkeypatch):
    monkeypatch.setattr(native_multiply.Multiplier, "has_kernel", lambda self, dtype: False)
    base = torch.randn(40).bfloat16()
    shared = base[:9].expand(12, 9) if form == "expanded" else base.as_strided((12, 9), (2, 1))
    other = torch.randn(9, 7).bfloat16()
    a, b = (shared, other) if side == "a" else (other.t(), shared.t())
    out = torch.empty(a.shape[0], b.shape[1])
    Multiplier(NativeLibrary()).into(out, a, b)
    assert torch.allclose(out.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("vendor", "flags", "onednn_is_fast", "own_bf16", "own_fp32"),
    [
        (AMD, {"avx512_bf16"}, True, True, True),
        (AMD, {"avx512_bf16"}, False, True, True),
        (INTEL, {"avx512_bf16"}, True, False, False),
        (INTEL, {"avx512_bf16", "amx_bf16"}, True, False, False),
        # told by ONEDNN_MAX_CPU_ISA to leave AMX alone
        (INTEL, {"avx512_bf16", "amx_bf16"}, False, True, False),
    ],
)
def test_who_multiplies_where(vendor, flags, onednn_is_fast, own_bf16, own_fp32, monkeypatch):
    monkeypatch.setattr(native_multiply, "_cpu", lambda: (vendor, frozenset(flags)))
    monkeypatch.setattr(native_multiply, "bf16_is_fast", lambda: onednn_is_fast)
    monkeypatch.setattr(native_multiply, "mkl_gemm", lambda: print)
    monkeypatch.setattr(native_multiply, "mkl_is_fast", native_multiply.mkl_is_fast.__wrapped__)
    monkeypatch.setattr(NativeLibrary, "has_gemm", lambda self, dtype: True)
    multiplier = Multiplier(NativeLibrary())
    assert multiplier.has_kernel(torch.bfloat16) is own_bf16
    assert multiplier.has_kernel(torch.float32) is own_fp32
    assert multiplier.widens_bf16() is (own_bf16 or onednn_is_fast)
