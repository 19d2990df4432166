"""The compiled kernels (csrc/cpu) through ctypes: loading, version check, typed calls.

Shapes: `C rows of logits . V columns`.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from ctypes import c_char_p, c_double, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..problem import HeadProblem
from .row_pass import RowCoefficients, RowStatistics
from .workspace import borrowed

PATH = Path(__file__).resolve().parent.parent / "libpolaris_cpu.so"
LEVEL_KEY = "POLARIS_KERNELS_CPU_LEVEL"
REBUILD = "build it with `python csrc/build.py`, or install the package again"

# PK_ABI_VERSION of csrc/cpu/row_pass.h
ABI_VERSION = 4
# the PK_* storage types there
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}

# bytes from which the C library maps fresh pages for every allocation
_LEAST_BACKED = 32 * 2**20


class LibraryError(RuntimeError):
    """The library is missing, stale or refuses; the message says what to do."""


class NotNow(LibraryError):
    """It cannot be tried at this moment, and later it can."""


class _Logits(ctypes.Structure):
    _fields_ = (
        ("logits", c_void_p),
        ("row_stride", c_int64),
        ("num_rows", c_int64),
        ("num_columns", c_int64),
        ("targets", c_void_p),
        ("target_offset", c_int64),
        ("bias", c_void_p),
        ("temperature", c_void_p),
        ("temperature_all", c_double),
        ("scale", c_double),
        ("softcap", c_double),
        ("dtype", c_int32),
        ("rounds_logits", c_int32),
        ("num_threads", c_int32),
        ("reserved", c_int32),
    )


class _Statistics(ctypes.Structure):
    _fields_ = (
        *((n, c_void_p) for n in ("maximum", "sum_exp", "sum_z_exp", "target", "rows")),
        ("num_listed", c_int64),
    )


class _Gradient(ctypes.Structure):
    _fields_ = (
        ("rows", c_void_p),
        ("num_listed", c_int64),
        ("maximum", c_void_p),
        ("alpha", c_void_p),
        ("beta", c_void_p),
        ("gamma", c_void_p),
        ("out", c_void_p),
        ("out_row_stride", c_int64),
        ("out_dtype", c_int32),
        ("reserved", c_int32),
    )


class _Matrix(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("row_stride", c_int64), ("k_stride", c_int64))


class _Gemm(ctypes.Structure):
    _fields_ = (
        ("a", _Matrix),
        ("b", _Matrix),
        ("c", c_void_p),
        ("c_row_stride", c_int64),
        ("m", c_int64),
        ("n", c_int64),
        ("k", c_int64),
        ("dtype", c_int32),
        ("c_dtype", c_int32),
        ("add", c_int32),
        ("num_threads", c_int32),
        ("workspace", c_void_p),
    )


class NativeLibrary:
    """The C functions of one shared library, on tensors."""

    def __init__(self, path: Path = PATH) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise LibraryError(
                f"polaris_kernels: the native CPU library does not load: {error}; {REBUILD}"
            ) from error
        found = self._library.pk_abi_version()
        if found != ABI_VERSION:
            raise LibraryError(
                f"polaris_kernels: {path.name} has ABI version {found} and this package needs "
                f"{ABI_VERSION}: it was compiled from other sources; {REBUILD}"
            )
        self._library.pk_level.restype = c_char_p
        self._pack_rows: Callable[..., int] = self._library.pk_pack_rows
        self._library.pk_pack_rows.argtypes = (
            c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int32,
        )  # fmt: skip
        self._library.pk_add_bf16.argtypes = (c_void_p, c_void_p, c_int64, c_int32)
        self._library.pk_back_pages.argtypes = (c_void_p, c_int64, c_int32)
        self._library.pk_gemm_workspace.restype = c_int64
        if wanted := os.environ.get(LEVEL_KEY):
            self.set_level(wanted)

    @property
    def level(self) -> str:
        """The instruction set in use: avx512, avx2 or portable."""
        return str(self._library.pk_level().decode())

    def set_level(self, name: str) -> None:
        """Use another instruction set from now on."""
        if self._library.pk_set_level(name.encode()):
            raise LibraryError(
                f"polaris_kernels: the native CPU library has no level {name!r} for this CPU; "
                f"levels are avx512, avx2 and portable (always there), from {LEVEL_KEY}"
            )

    def statistics(
        self,
        problem: HeadProblem,
        z: Tensor,
        tokens: slice,
        columns: slice,
        out: RowStatistics,
        *,
        accumulate: bool,
        listed: Tensor | None = None,
    ) -> None:
        """Reduce raw logits z (C, V) into `out`, merging with what is there if `accumulate`.

        `out.target` gets the target's z itself, not its distance to the maximum.

        Args:
            listed: int64, the only rows to read and to write.
        """
        if listed is not None and not listed.numel():
            # an empty list has no address, and no address means every row
            return
        given, keep = _describe(problem, z, tokens, columns)
        parts = (out.maximum, out.sum_exp, out.sum_z_exp, out.target)
        assert all(p.is_contiguous() and p.dtype == problem.acc_dtype for p in parts)
        num_listed = 0 if listed is None else listed.numel()
        made = _Statistics(*map(_address, (*parts, listed)), num_listed)
        self._call(
            self._library.pk_statistics,
            ctypes.byref(given), ctypes.byref(made), c_int32(accumulate),
        )  # fmt: skip
        del keep

    def gradient(
        self,
        problem: HeadProblem,
        z: Tensor,
        tokens: slice,
        maximum: Tensor,
        coefficients: RowCoefficients,
        *,
        out: Tensor,
        rows: Tensor | None = None,
        columns: slice | None = None,
    ) -> None:
        """Raw logits z (C, V) -> d loss / d raw logits in the same rows of `out`.

        Args:
            out: (C, V) of z's or a narrower dtype; may lie over z, row by row from its start.
            rows: int64: the only rows to do.
            columns: of the vocabulary in z; None: all.
        """
        if rows is not None and not rows.numel():
            return
        given, keep = _describe(problem, z, tokens, columns or slice(0, z.shape[1]))
        parts = [
            None if part is None else part.to(problem.acc_dtype).reshape(-1).contiguous()
            for part in (maximum, coefficients.alpha, coefficients.beta, coefficients.gamma)
        ]
        assert out.shape == z.shape and out.stride(1) == 1
        assert all(p is None or p.numel() == z.shape[0] for p in parts)
        made = _Gradient(
            _address(rows),
            0 if rows is None else rows.numel(),
            *map(_address, parts),
            out.data_ptr(),
            out.stride(0),
            DTYPES[out.dtype],
            0,
        )
        self._call(self._library.pk_gradient, ctypes.byref(given), ctypes.byref(made))
        del keep, parts

    def pack_rows(self, data: Tensor, rows: Tensor) -> None:
        """data[:K] = data[rows] for ascending rows (K,), in place. data: (C, V), dense columns."""
        assert data.stride(1) == 1
        size = data.element_size()
        self._call(
            self._pack_rows,
            data.data_ptr(),
            data.stride(0) * size,
            data.shape[1] * size,
            rows.data_ptr(),
            rows.numel(),
            torch.get_num_threads(),
        )

    def add_bf16(self, total: Tensor, part: Tensor) -> None:
        """total += part; contiguous float32 and bfloat16 of one shape."""
        assert total.is_contiguous() and part.is_contiguous() and total.shape == part.shape
        self._call(
            self._library.pk_add_bf16,
            total.data_ptr(), part.data_ptr(), part.numel(), torch.get_num_threads(),
        )  # fmt: skip

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A new contiguous tensor whose memory, where it is large, has its pages already."""
        made = torch.empty(shape, dtype=dtype, device="cpu")
        size = made.numel() * made.element_size()
        if size >= _LEAST_BACKED:
            self._call(self._library.pk_back_pages, made.data_ptr(), size, torch.get_num_threads())
        return made

    def has_gemm(self, dtype: torch.dtype, out_dtype: torch.dtype = torch.float32) -> bool:
        """True when the level in use multiplies operands of this type into such a result."""
        return self.gemm_workspace(dtype, out_dtype) > 0

    def gemm(self, a: Tensor, b: Tensor, out: Tensor, *, add: bool) -> None:
        """out (m, n) = or += a (m, k) @ b (k, n), of types that `has_gemm`; rounded once.

        One stride of each operand must be 1; out's columns are dense. No size is 0.
        """
        (m, k), n = a.shape, b.shape[1]
        assert b.shape[0] == k and out.shape == (m, n) and a.dtype == b.dtype
        assert out.stride(1) == 1 or n == 1
        size = self.gemm_workspace(a.dtype, out.dtype)
        with borrowed(((1, size // 4),), out.new_empty(0, dtype=torch.float32)) as (workspace,):
            given = _Gemm(
                a=_Matrix(a.data_ptr(), a.stride(0), a.stride(1)),
                b=_Matrix(b.data_ptr(), b.stride(1), b.stride(0)),
                c=out.data_ptr(),
                c_row_stride=out.stride(0),
                m=m,
                n=n,
                k=k,
                dtype=DTYPES[a.dtype],
                c_dtype=DTYPES[out.dtype],
                add=add,
                num_threads=torch.get_num_threads(),
                workspace=workspace.data_ptr(),
            )
            self._call(self._library.pk_gemm, ctypes.byref(given))

    def gemm_workspace(self, dtype: torch.dtype, out_dtype: torch.dtype) -> int:
        """Bytes that `gemm` borrows for operands and a result of these types; 0: none such."""
        if dtype not in DTYPES or out_dtype not in DTYPES:
            return 0
        return int(self._library.pk_gemm_workspace(DTYPES[dtype], DTYPES[out_dtype]))

    def _call(self, function: Callable[..., int], *arguments: Any) -> None:
        if function(*arguments):
            raise LibraryError(f"polaris_kernels: {function.__name__} refused its arguments")


def _describe(
    problem: HeadProblem, z: Tensor, tokens: slice, columns: slice
) -> tuple[_Logits, tuple[Tensor | None, ...]]:
    """The C description of z, and the tensors that must outlive it."""
    assert z.stride(1) == 1 and z.shape[0] == tokens.stop - tokens.start
    targets = problem.targets[tokens].contiguous()
    bias = None if problem.bias is None else problem.bias[columns].contiguous()
    temperature = problem.temperature
    per_token = None
    if isinstance(temperature, Tensor):
        per_token = temperature[tokens].contiguous()
    given = _Logits(
        logits=z.data_ptr(),
        row_stride=max(z.stride(0), z.shape[1]),
        num_rows=z.shape[0],
        num_columns=z.shape[1],
        targets=targets.data_ptr(),
        target_offset=columns.start,
        bias=_address(bias),
        temperature=_address(per_token),
        temperature_all=1.0 if isinstance(temperature, Tensor) else temperature,
        scale=problem.logit_scale,
        softcap=problem.softcap or 0.0,
        dtype=DTYPES[z.dtype],
        rounds_logits=problem.rounds_logits and z.dtype != torch.bfloat16,
        num_threads=torch.get_num_threads(),
    )
    return given, (targets, bias, per_token)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
