"""Buffers of the fused head, from the chunks that its backend will cut."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from polaris_kernels.backends import native_library
from polaris_kernels.backends.native_gemm import PIECE_ELEMENTS, Gemms
from polaris_kernels.backends.native_tiles import takes_tiles, tile_bytes
from polaris_kernels.problem import HeadProblem, make_problem

from .kernels import Device


@dataclass(frozen=True)
class HeadBytes:
    """What one loss call of the head makes."""

    logits: int  # bytes of one chunk's logits, gradients written over them; freed after the call
    workspace: int  # on a CPU: logits and panels, kept for the next call
    weight_gradient: torch.dtype  # of the (V, D) sum over chunks
    num_chunks: int


def head_bytes(
    num_targets: int,
    hidden_size: int,
    vocab_size: int,
    *,
    dtype: torch.dtype,
    logits_dtype: Literal["fp32", "bf16"],
    device: Device,
    chunk_bytes: int,
    frozen: bool = False,
) -> HeadBytes:
    """Chunk of the Triton backend on a GPU, of the native one on a CPU.

    Args:
        num_targets: completion tokens of the micro-batch.
        dtype: of the model.
        chunk_bytes: budget of the logits that exist at a time.
        frozen: the head's weight gets no gradient.
    """
    problem = make_problem(
        torch.empty(num_targets, hidden_size, dtype=dtype, device="meta"),
        torch.empty(vocab_size, hidden_size, dtype=dtype, device="meta"),
        torch.empty(num_targets, dtype=torch.int64, device="meta"),
        bias=None,
        temperature=1.0,
        softcap=None,
        logit_scale=1.0,
        logits_dtype=logits_dtype,
        chunk_bytes=chunk_bytes,
        caller="plan",
        compute_dtype=dtype,
    )
    gemms = _native_gemms(problem) if device == "cpu" else None
    rounds = device == "cuda" and problem.rounds_logits and dtype == torch.bfloat16
    itemsize = 2 if rounds else problem.acc_dtype.itemsize
    if gemms is not None:
        itemsize = gemms.plan.logits.itemsize
    tile = _tile_bytes(gemms) if gemms is not None else None
    if tile is not None:
        return HeadBytes(0, workspace=tile, weight_gradient=dtype, num_chunks=1)
    count = _num_chunks(problem, itemsize, device)
    rows = -(-num_targets // max(count, 1))
    logits = rows * vocab_size * itemsize
    # one chunk alone is rounded on the way on the CPU, and no wide dW exists
    narrow = device == "cpu" and count <= 1
    piece = 0
    if narrow and not frozen and dtype != problem.acc_dtype:
        piece = min(vocab_size * hidden_size, PIECE_ELEMENTS) * problem.acc_dtype.itemsize
    return HeadBytes(
        logits=logits if device == "cuda" else 0,
        workspace=0 if device == "cuda" else logits + _kept(gemms, piece),
        weight_gradient=dtype if narrow else problem.acc_dtype,
        num_chunks=count,
    )


def _num_chunks(problem: HeadProblem, itemsize: int, device: Device) -> int:
    if device == "cuda" and find_spec("triton") is not None:
        from polaris_kernels.backends.triton_chunked import TritonBackend

        return TritonBackend().num_chunks(problem)
    rows = max(1, problem.chunk_bytes // (problem.vocab_size * itemsize))
    return -(-problem.num_tokens // rows)


def _native_gemms(problem: HeadProblem) -> Gemms | None:
    """Products of the native backend; None where it is not built."""
    if not native_library.PATH.exists():
        return None
    return Gemms(native_library.NativeLibrary(), problem)


def _tile_bytes(gemms: Gemms) -> int | None:
    """Buffers where it goes by vocabulary tiles; None where it does not."""
    if not takes_tiles(gemms):
        return None
    logits, rows = tile_bytes(gemms)
    return logits + _kept(gemms, rows)


def _kept(gemms: Gemms | None, piece: int) -> int:
    """What the products borrow: panels, and a buffer for a piece of dW, which panels had before."""
    if gemms is None:
        return 0
    dtype = gemms.plan.gradient
    if not gemms.multiply.has_kernel(dtype):
        return piece
    # a result in the operands' own type is rounded by the product, which needs no piece
    if itself := gemms.library.gemm_workspace(dtype, dtype):
        return itself
    panels = gemms.library.gemm_workspace(dtype, torch.float32)
    return panels + (max(piece, panels) if piece else 0)
