"""The compiled CUDA row kernels (csrc/cuda) through ctypes: loading, version check, typed calls.

Shapes: `C rows of logits . V columns . K listed rows`.
"""

import ctypes
import math
from ctypes import c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..foreseen import KL_SLOPES, RowRule
from .native_library import LibraryError

if TYPE_CHECKING:
    # Triton takes a second to import
    from .triton_launch import RowState, Scaling

PATH = Path(__file__).resolve().parent.parent / "libpolaris_cuda.so"
REBUILD = "build it with `python csrc/build.py` where nvcc is, or install the package again"

# PKC_ABI_VERSION of csrc/cuda/rows.h
ABI_VERSION = 1
# the PKC_* storage types there
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_OK, _CUDA_ERROR = 0, 4
_MEANING = {
    1: "a null pointer, a size or a type that no kernel takes",
    2: "a row that does not start at a multiple of 16 bytes",
    3: "a device below compute capability 8.0, or a cluster on one below 9.0",
}
# every row starts at a multiple of this
_ALIGNMENT = 16


class Logits(ctypes.Structure):
    """`PkcLogits`."""

    _fields_ = (
        ("logits", c_void_p),
        ("row_stride", c_int64),
        ("num_rows", c_int64),
        ("num_columns", c_int64),
        ("targets", c_void_p),
        ("kept", c_void_p),
        ("bias", c_void_p),
        ("scale", c_void_p),
        ("scale_all", c_float),
        ("cap_scale", c_float),
        ("dtype", c_int32),
        ("rounds", c_int32),
        ("flips", c_int32),
        ("device", c_int32),
    )


class State(ctypes.Structure):
    """`PkcState`."""

    _fields_ = tuple((n, c_void_p) for n in ("logp", "entropy", "lse", "shift", "total"))


class Rule(ctypes.Structure):
    """`PkcRule`."""

    _fields_ = (
        *((n, c_void_p) for n in ("g_logp", "g_entropy", "g_lse")),
        *((n, c_void_p) for n in ("advantages", "old_logps", "weight", "ref_logps", "kl_weight")),
        ("ratio_low", c_float),
        ("ratio_high", c_float),
        ("ratio_cap", c_float),
        ("kl", c_int32),
    )


class Out(ctypes.Structure):
    """`PkcOut`."""

    _fields_ = (
        ("out", c_void_p),
        ("row_stride", c_int64),
        ("dtype", c_int32),
        ("reserved", c_int32),
        ("index", c_void_p),
        ("num_listed", c_int64),
    )


class CudaLibrary:
    """The C functions of one shared library, on tensors of one device."""

    def __init__(self, path: Path = PATH) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise LibraryError(
                f"polaris_kernels: the CUDA library does not load: {error}; {REBUILD}"
            ) from error
        found = self._library.pkc_abi_version()
        if found != ABI_VERSION:
            raise LibraryError(
                f"polaris_kernels: {path.name} has ABI version {found} and this package needs "
                f"{ABI_VERSION}: it was compiled from other sources; {REBUILD}"
            )
        self._library.pkc_last_error.restype = c_char_p
        self._library.pkc_cluster_size.argtypes = (c_int64, c_int32, c_int32, c_int64)
        self._library.pkc_shared_bytes.argtypes = (c_int64, c_int32, c_int32)
        self._library.pkc_shared_bytes.restype = c_int64

    def cluster_size(
        self, width: int, dtype: torch.dtype, capability: int, shared_bytes: int
    ) -> int:
        """Blocks that share a row, 0 where two kernels read it; see `pkc_cluster_size`."""
        size = self._library.pkc_cluster_size(width, DTYPES[dtype], capability, shared_bytes)
        return int(size)

    def shared_bytes(self, width: int, dtype: torch.dtype, cluster: int) -> int:
        """Shared memory of each of those blocks."""
        return int(self._library.pkc_shared_bytes(width, DTYPES[dtype], cluster))

    def statistics(self, logits: Logits, state: State) -> None:
        """One read."""
        self._check(
            "pkc_statistics",
            self._library.pkc_statistics(ctypes.byref(logits), ctypes.byref(state), _stream()),
        )

    def gradient(self, logits: Logits, state: State, rule: Rule, out: Out) -> None:
        """One read, one write."""
        parts = (ctypes.byref(x) for x in (logits, state, rule, out))
        self._check("pkc_gradient", self._library.pkc_gradient(*parts, _stream()))

    def row_pass(self, logits: Logits, state: State, rule: Rule, out: Out, cluster: int) -> None:
        """Both: one read and one write where the row fits on the chip."""
        parts = (ctypes.byref(x) for x in (logits, state, rule, out))
        self._check("pkc_row_pass", self._library.pkc_row_pass(*parts, c_int32(cluster), _stream()))

    def _check(self, name: str, status: int) -> None:
        if status == _OK:
            return
        why = _MEANING.get(status, f"status {status}")
        if status == _CUDA_ERROR:
            why = self._library.pkc_last_error().decode()
        raise LibraryError(f"polaris_kernels: {name}: {why}")


def takes(logits: Tensor, out: Tensor | None = None) -> bool:
    """True for rows that the kernels read and write: their types, 16-byte starts."""
    rows = (logits,) if out is None else (logits, out)
    return all(
        t.dtype in DTYPES
        and t.data_ptr() % _ALIGNMENT == 0
        and t.stride(0) * t.element_size() % _ALIGNMENT == 0
        and (t.stride(1) == 1 or t.shape[1] == 1)
        for t in rows
    )


def describe_logits(
    logits: Tensor, targets: Tensor, scaling: "Scaling", kept: Tensor | None
) -> tuple[Logits, tuple[Tensor | None, ...]]:
    """The C description of (C, V) logits, and the tensors that must outlive it.

    Args:
        targets: (C,) int64.
        kept: (C,) of any type; 0: not read.
    """
    C, V = logits.shape
    targets = targets.contiguous()
    bytes_of_kept = None if kept is None else (kept != 0).view(torch.uint8)
    per_row = scaling.scale.contiguous() if isinstance(scaling.scale, Tensor) else None
    made = Logits(
        logits=logits.data_ptr(),
        row_stride=logits.stride(0),
        num_rows=C,
        num_columns=V,
        targets=targets.data_ptr(),
        kept=_address(bytes_of_kept),
        bias=_address(scaling.bias),
        scale=_address(per_row),
        scale_all=1.0 if isinstance(scaling.scale, Tensor) else scaling.scale,
        cap_scale=scaling.cap_scale or 0.0,
        dtype=DTYPES[logits.dtype],
        rounds=scaling.rounds,
        flips=scaling.flips,
        device=logits.device.index or 0,
    )
    return made, (targets, bytes_of_kept, per_row, scaling.bias)


def describe_state(state: "RowState") -> State:
    """The C description of what the statistics leave behind."""
    return State(
        *(p.data_ptr() for p in (state.logp, state.entropy, state.lse, state.shift, state.total))
    )


def describe_rule(rule: RowRule) -> tuple[Rule, tuple[Tensor | None, ...]]:
    """The C description of a rule, and the tensors that must outlive it."""
    clipped, given = rule.clipped, rule.given
    parts = [_row_vector(x) for x in (given.logp, given.entropy, given.lse)]
    if clipped is None:
        return Rule(*map(_address, parts), ratio_cap=math.inf), tuple(parts)
    parts += [
        _row_vector(x)
        for x in (
            clipped.advantages,
            clipped.old_logps,
            clipped.weight,
            clipped.ref_logps,
            clipped.kl_weight,
        )
    ]
    made = Rule(
        *map(_address, parts),
        ratio_low=clipped.low,
        ratio_high=clipped.high,
        ratio_cap=clipped.cap,
        kl=KL_SLOPES.index(clipped.kl_slope),
    )
    return made, tuple(parts)


def describe_out(out: Tensor, index: Tensor | None = None) -> Out:
    """The C description of where the gradient goes."""
    return Out(
        out=out.data_ptr(),
        row_stride=out.stride(0),
        dtype=DTYPES[out.dtype],
        index=_address(index),
        num_listed=0 if index is None else index.numel(),
    )


def _row_vector(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.to(torch.float32).contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _stream() -> c_void_p:
    return c_void_p(torch.cuda.current_stream().cuda_stream)
