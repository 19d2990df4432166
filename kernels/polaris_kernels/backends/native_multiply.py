"""One matrix product, by whoever does it best on this CPU: our kernel, MKL, or torch.

bf16 operands with an fp32 result are what the head wants, and no torch op gives them on a CPU. MKL
has that product (fast on Intel's CPUs), csrc/cpu has it for the others with AVX-512. Elsewhere bf16
is multiplied by torch, with a bf16 result, where that is fast, and else cast to fp32.

Shapes: `a (m, k) . b (k, n) . out (m, n)`.
"""

import ctypes
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .native_library import NativeLibrary

# CPUs without any of these have no bf16 multiplication; those with one are timed all the same, as
# oneDNN can be told to leave it alone (and then takes 1.2 to 75 times as long as fp32)
_BF16_FLAGS = frozenset(("amx_bf16", "avx512_bf16"))
# share of the fp32 GEMM's time below which bf16 counts as fast; measured .15-.4 where it is
_FAST_SHARE = 0.8

_ROW_MAJOR, _NO_TRANSPOSE, _TRANSPOSE = 101, 111, 112


class Multiplier:
    """Products with sums in fp32 (fp64 for fp64 operands)."""

    def __init__(self, library: NativeLibrary) -> None:
        self.library = library

    def has_kernel(self, dtype: torch.dtype) -> bool:
        """True when csrc/cpu's own product is the one to take for operands of this type."""
        if not self.library.has_gemm(dtype):
            return False
        vendor, flags = _cpu()
        if dtype == torch.bfloat16:
            return not (mkl_is_fast() or ("amx_bf16" in flags and bf16_is_fast()))
        # MKL keeps AVX-512 for Intel's own: 97 against 205 GFLOP/s on one Zen 5 core
        return vendor != "GenuineIntel"

    def widens_bf16(self) -> bool:
        """True when bf16 operands give an fp32 result fast."""
        return self.has_kernel(torch.bfloat16) or mkl_is_fast()

    def into(self, out: Tensor, a: Tensor, b: Tensor, *, add: bool = False) -> None:
        """out = or += a @ b; bf16 operands may have an fp32 `out` where `widens_bf16`.

        Anything else has one dtype. A bf16 `out` of our own kernel is rounded once, sum included.
        """
        is_there = out.numel() > 0 and a.shape[1] > 0
        if is_there and self.has_kernel(a.dtype) and self.library.has_gemm(a.dtype, out.dtype):
            self.library.gemm(_with_dense_side(a), _with_dense_side(b), out, add=add)
        elif is_there and a.dtype == torch.bfloat16 and out.dtype == torch.float32:
            mkl_multiply(_with_dense_side(a), _with_dense_side(b), out, add=add)
        elif add:
            out.addmm_(a, b)
        else:
            torch.mm(a, b, out=out)


@cache
def bf16_is_fast() -> bool:
    """True when torch's bf16 GEMM beats the fp32 one here."""
    _, flags = _cpu()
    if flags and flags.isdisjoint(_BF16_FLAGS):
        return False
    return _bf16_share() < _FAST_SHARE


@cache
def mkl_is_fast() -> bool:
    """True when torch's library has MKL's bf16 -> fp32 GEMM and MKL has a bf16 kernel for this CPU.

    Elsewhere (AMD) it runs at the speed of fp32: too close to time, and a choice that noise can
    tip would make two runs differ in their bits.
    """
    if mkl_gemm() is None or not bf16_is_fast():
        return False
    vendor, flags = _cpu()
    return vendor == "GenuineIntel" and not flags.isdisjoint(_BF16_FLAGS)


@cache
def mkl_gemm() -> Callable[..., None] | None:
    """cblas_gemm_bf16bf16f32 of the MKL inside torch; None where torch has none."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.CDLL(str(path)).cblas_gemm_bf16bf16f32
    except (OSError, AttributeError):
        return None
    integer, real, address = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    function.restype = None
    function.argtypes = (
        *(integer,) * 6, real, address, integer, address, integer, real, address, integer,
    )  # fmt: skip
    return function


def mkl_multiply(a: Tensor, b: Tensor, out: Tensor, *, add: bool) -> None:
    """out fp32 = or += a @ b, both bf16 with one stride of 1."""
    function = mkl_gemm()
    assert function is not None and out.stride(1) == 1
    (a_form, a_stride), (b_form, b_stride) = (_form_of(x) for x in (a, b))
    function(
        _ROW_MAJOR, a_form, b_form, *out.shape, a.shape[1], 1.0,
        a.data_ptr(), a_stride, b.data_ptr(), b_stride, float(add),
        out.data_ptr(), max(out.stride(0), out.shape[1]),
    )  # fmt: skip


def _form_of(x: Tensor) -> tuple[int, int]:
    """BLAS's form and leading dimension; of a single row or column, torch's stride may be any."""
    if x.stride(1) == 1:
        return _NO_TRANSPOSE, max(x.stride(0), x.shape[1])
    return _TRANSPOSE, max(x.stride(1), x.shape[0])


def _with_dense_side(x: Tensor) -> Tensor:
    """x itself where it is a matrix to BLAS: one stride of 1, and rows (or columns) apart."""
    for near, far in ((1, 0), (0, 1)):
        if x.stride(near) == 1 and (x.stride(far) >= x.shape[near] or x.shape[far] == 1):
            return x
    return x.contiguous()


@cache
def _cpu() -> tuple[str, frozenset[str]]:
    """Vendor and flags of the first CPU; empty where the system does not list them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "", frozenset()
    lines = text.partition("\n\n")[0].splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    return fields.get("vendor_id", ""), frozenset(fields.get("flags", "").split())


def _bf16_share() -> float:
    """Time of a bf16 GEMM over that of the fp32 one, best of five."""
    with torch.inference_mode(False), torch.no_grad():
        a, b = (torch.ones(rows, 512, dtype=torch.float32, device="cpu") for rows in (256, 1024))
        pairs = ((a.bfloat16(), b.bfloat16().t()), (a, b.t()))
        outs = (a.new_empty(256, 1024).bfloat16(), a.new_empty(256, 1024))
        best = [float("inf")] * 2
        for _ in range(5):
            for i, (pair, out) in enumerate(zip(pairs, outs, strict=True)):
                start = time.perf_counter()
                torch.mm(*pair, out=out)
                best[i] = min(best[i], time.perf_counter() - start)
    return best[0] / best[1]
