"""The GEMMs around the compiled row pass: which dtypes this CPU multiplies fast, and the calls.

Shapes: `C chunk . D hidden . V vocab`.
"""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..problem import HeadProblem
from . import gemm
from .native_library import NativeLibrary
from .workspace import borrowed

# CPUs without any of these have no bf16 multiplication; those with one are timed all the same, as
# oneDNN can be told to leave it alone (and then takes 1.2 to 75 times as long as fp32)
_BF16_FLAGS = frozenset(("amx_bf16", "avx512_bf16"))
# share of the fp32 GEMM's time below which bf16 counts as fast; measured .15-.4 where it is
_FAST_SHARE = 0.8
# bf16 elements of a part of dW on its way into the fp32 total
_PART_ELEMENTS = 2**21

_ROW_MAJOR, _NO_TRANSPOSE, _TRANSPOSE = 101, 111, 112


@dataclass(frozen=True)
class GemmPlan:
    """Dtypes of one problem's logits buffer and of the gradient that replaces the logits in it."""

    logits: torch.dtype
    gradient: torch.dtype


def plan_gemms(problem: HeadProblem) -> GemmPlan:
    """bf16 operands where this CPU multiplies them fast, else everything in the wide dtype."""
    wide = problem.acc_dtype
    if problem.weight.dtype != torch.bfloat16 or not bf16_is_fast():
        return GemmPlan(wide, wide)
    # the GEMM's own rounding is the one asked for, unless a bias comes in between
    rounds = problem.rounds_logits and problem.bias is None
    return GemmPlan(torch.bfloat16 if rounds else wide, torch.bfloat16)


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


def _cpu() -> tuple[str, frozenset[str]]:
    """Vendor and flags of the first CPU; empty where the system does not list them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "", frozenset()
    lines = text.partition("\n\n")[0].splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    return fields.get("vendor_id", ""), frozenset(fields.get("flags", "").split())


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


def mkl_logits(hidden: Tensor, weight: Tensor, out: Tensor) -> None:
    """out (C, V) fp32 = hidden (C, D) @ weight (V, D).T, both bf16."""
    _mkl(hidden, weight, out, transposes=(_NO_TRANSPOSE, _TRANSPOSE), beta=0.0)


def mkl_add_weight_gradient(total: Tensor, dz: Tensor, hidden: Tensor) -> None:
    """total (V, D) fp32 += dz (C, V).T @ hidden (C, D), both bf16."""
    _mkl(dz, hidden, total, transposes=(_TRANSPOSE, _NO_TRANSPOSE), beta=1.0)


def _mkl(a: Tensor, b: Tensor, out: Tensor, *, transposes: tuple[int, int], beta: float) -> None:
    function = mkl_gemm()
    assert function is not None and all(x.stride(1) == 1 for x in (a, b, out))
    rows, columns = out.shape
    inner = a.shape[0] if transposes[0] == _TRANSPOSE else a.shape[1]
    function(
        _ROW_MAJOR, *transposes, rows, columns, inner, 1.0,
        a.data_ptr(), a.stride(0), b.data_ptr(), b.stride(0), beta, out.data_ptr(), out.stride(0),
    )  # fmt: skip


def logits_operand(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The hidden states as `logits_into` wants them for logits of `dtype`: cast once, not a tile
    at a time."""
    if weight.dtype == dtype:
        return hidden
    if weight.dtype == torch.bfloat16 and weight.stride(1) == 1 and mkl_is_fast():
        return hidden.contiguous()
    return hidden.to(dtype)


def logits_into(operand: Tensor, weight: Tensor, out: Tensor) -> None:
    """out (C, W) = operand (C, D) @ weight (W, D).T, in out's dtype."""
    if operand.dtype == torch.bfloat16 and out.dtype == torch.float32:
        mkl_logits(operand, weight, out)
    else:
        gemm.logits_into(operand, weight, out)


def hidden_gradient_into(dz: Tensor, weight: Tensor, out: Tensor) -> None:
    """out (C, D) = dz (C, V) @ weight (V, D)."""
    if dz.dtype == weight.dtype == out.dtype:
        torch.mm(dz, weight, out=out)
    else:
        out.copy_(gemm.hidden_gradient(dz, weight))


class WeightGradient:
    """dW over chunks: one GEMM alone stays as it is, several are summed in the wide dtype."""

    def __init__(self, library: NativeLibrary, problem: HeadProblem) -> None:
        self._library = library
        self._problem = problem
        self._total: Tensor | None = None

    def add(self, dz: Tensor, hidden: Tensor, *, alone: bool) -> None:
        """Add dz (C, V).T @ hidden (C, D); `alone`: there is no other chunk."""
        if dz.dtype == self._problem.acc_dtype:
            self._total = gemm.add_weight_gradient(self._total, dz, hidden)
        elif alone:
            self._total = torch.mm(dz.t(), hidden)
        elif mkl_is_fast():
            mkl_add_weight_gradient(self._zeros(), dz, hidden.contiguous())
        else:
            self._add_parts(self._zeros(), dz, hidden)

    def _add_parts(self, total: Tensor, dz: Tensor, hidden: Tensor) -> None:
        V, D = total.shape
        step = max(1, _PART_ELEMENTS // max(D, 1))
        with borrowed(((min(step, V), D),), dz.new_empty(0)) as (buffer,):
            for start in range(0, V, step):
                columns = slice(start, min(start + step, V))
                part = buffer[: columns.stop - start]
                torch.mm(dz[:, columns].t(), hidden, out=part)
                self._library.add_bf16(total[columns], part)

    def _zeros(self) -> Tensor:
        if self._total is None:
            problem = self._problem
            self._total = torch.zeros(problem.weight.shape, dtype=problem.acc_dtype)
        return self._total

    def result(self) -> Tensor:
        """(V, D)."""
        return self._zeros()


def _bf16_share() -> float:
    """Time of a bf16 GEMM over that of the fp32 one, best of five."""
    with torch.inference_mode(False), torch.no_grad():
        a, b = torch.ones(256, 512), torch.ones(1024, 512)
        pairs = ((a.bfloat16(), b.bfloat16().t()), (a, b.t()))
        outs = (a.new_empty(256, 1024).bfloat16(), a.new_empty(256, 1024))
        best = [float("inf")] * 2
        for _ in range(5):
            for i, (pair, out) in enumerate(zip(pairs, outs, strict=True)):
                start = time.perf_counter()
                torch.mm(*pair, out=out)
                best[i] = min(best[i], time.perf_counter() - start)
    return best[0] / best[1]
