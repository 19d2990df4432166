"""Buffers of the fused head, from the chunks that its backend will cut."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from polaris_kernels.backends import native_library
from polaris_kernels.problem import CHUNK_BYTES_CPU, CHUNK_BYTES_GPU, HeadProblem, make_problem

from .kernels import Device

# What the compiled CPU product packs its operands into, kept too.
_PANEL_BYTES = 2_162_688


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
    frozen: bool = False,
) -> HeadBytes:
    """Chunk of the Triton backend on a GPU, of the native one on a CPU.

    Args:
        num_targets: completion tokens of the micro-batch.
        dtype: of the model.
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
        chunk_bytes=CHUNK_BYTES_CPU if device == "cpu" else CHUNK_BYTES_GPU,
        caller="plan",
        compute_dtype=dtype,
    )
    rounds = device == "cuda" and problem.rounds_logits and dtype == torch.bfloat16
    itemsize = 2 if rounds else problem.acc_dtype.itemsize
    count = _num_chunks(problem, itemsize, device)
    rows = -(-num_targets // max(count, 1))
    logits = rows * vocab_size * itemsize
    # one chunk alone is rounded piece by piece on the CPU, and no wide dW exists
    narrow = device == "cpu" and count <= 1
    return HeadBytes(
        logits=logits if device == "cuda" else 0,
        workspace=0 if device == "cuda" else logits + _kept_panels(dtype, frozen),
        weight_gradient=dtype if narrow else problem.acc_dtype,
        num_chunks=count,
    )


def _num_chunks(problem: HeadProblem, itemsize: int, device: Device) -> int:
    if device == "cuda" and find_spec("triton") is not None:
        from polaris_kernels.backends.triton_chunked import TritonBackend

        return TritonBackend().num_chunks(problem)
    rows = max(1, problem.chunk_bytes // (problem.vocab_size * itemsize))
    return -(-problem.num_tokens // rows)


def _kept_panels(dtype: torch.dtype, frozen: bool) -> int:
    if native_library.PATH.exists() and native_library.NativeLibrary().has_gemm(dtype):
        # bf16 weight gradients are rounded piece by piece: a piece takes a buffer of its own
        return _PANEL_BYTES * (2 if dtype == torch.bfloat16 and not frozen else 1)
    return 0
