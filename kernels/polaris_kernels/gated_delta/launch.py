"""Launching the kernels: the buffers between them, and what runs when. Their sizes are in `sizes`.

    prepare    system -> solve
    forward    prepare -> scan -> output
    backward   prepare -> scan -> inner -> reverse scan -> value -> state -> finish

Backward makes the states and writes again from the inputs: kept, they would be 24 KiB a token at 32
value heads of 128 x 128, in bf16. No launch waits for the device, and none depends on the number of
tokens but through its grid.

Shapes: `T tokens . H key heads . G value heads a key head . K, V head dims . N chunks`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .chunk_kernels import output_kernel, solve_kernel
from .gradient_kernels import (
    finish_kernel,
    inner_gradient_kernel,
    state_gradient_kernel,
    value_gradient_kernel,
)
from .row_chunks import RowChunks
from .scan_kernels import reverse_scan_kernel, scan_kernel
from .sizes import SIZES, block
from .system_kernels import system_kernel

_FUSED = {"enable_fp_fusion": True}  # Triton warns where this is left to its default


@dataclass(frozen=True)
class Inputs:
    """Tensors of one call: last dimensions adjacent; K, V and all distances in q, k and v multiples
    of 16 elements."""

    q: Tensor
    """(T, H, K)"""
    k: Tensor
    v: Tensor
    """(T, H * G, V)"""
    g: Tensor
    """(T, H * G)"""
    beta: Tensor
    rows: RowChunks
    scale: float
    """of q beside its length"""

    @property
    def value_heads(self) -> int:
        return self.v.shape[1]

    @property
    def key_grid(self) -> tuple[int, int]:
        """A program a chunk and key head."""
        return self.rows.num_chunks, self.q.shape[1]

    @property
    def value_grid(self) -> tuple[int, int]:
        """A program a chunk and value head."""
        return self.rows.num_chunks, self.value_heads

    def scan_grid(self, kernel: str) -> tuple[int]:
        """A program a row, value head and block of value columns."""
        return (self.rows.num_rows * self.value_heads * self.num_blocks(kernel, "BLOCK_V"),)

    def num_blocks(self, kernel: str, name: str) -> int:
        """Into how many blocks the kernel cuts a head's columns."""
        width, most = self._widths[name], SIZES[kernel].most[name]
        return -(-width // block(width, most))

    @property
    def _widths(self) -> dict[str, int]:
        K, V = self.q.shape[2], self.v.shape[2]
        return {"BLOCK_K": K, "BLOCK_V": V, "BLOCK": max(K, V), "BLOCK_C": self.rows.chunk_size}

    def options(self, kernel: str) -> dict[str, object]:
        """Head dims, sizes and launch options of a kernel."""
        sizes = SIZES[kernel]
        return {
            "G": self.value_heads // self.q.shape[1], "K": self.q.shape[2],
            "CHUNK": self.rows.chunk_size,
            # the inverse of 16-bit inputs is rounded to 16 bits: one tf32 product is finer
            "PRECISION": "tf32" if self.q.itemsize == 2 else "tf32x3",
            "num_warps": sizes.num_warps, "num_stages": sizes.num_stages, **_FUSED,
            **{name: block(self._widths[name], most) for name, most in sizes.most.items()},
        }  # fmt: skip

    def gates(self) -> dict[str, object]:
        return {
            "g_ptr": self.g, "stride_gt": self.g.stride(0),
            "beta_ptr": self.beta, "stride_bt": self.beta.stride(0),
        }  # fmt: skip

    def tables(self) -> dict[str, Tensor]:
        return {"first_ptr": self.rows.first, "length_ptr": self.rows.length}

    def row_tables(self) -> dict[str, Tensor]:
        rows = self.rows
        return {
            "order_ptr": rows.order, "row_start_ptr": rows.row_start,
            "row_chunk_ptr": rows.row_chunk,
        }  # fmt: skip

    def query(self) -> dict[str, object]:
        return {"q_ptr": self.q, "stride_qt": self.q.stride(0), "stride_qh": self.q.stride(1)}

    def key(self) -> dict[str, object]:
        return {"k_ptr": self.k, "stride_kt": self.k.stride(0), "stride_kh": self.k.stride(1)}

    def value(self) -> dict[str, object]:
        return {"v_ptr": self.v, "stride_vt": self.v.stride(0), "stride_vh": self.v.stride(1)}


@dataclass(frozen=True)
class Inside:
    """What the chunks give to the scan, and what it makes of that."""

    decay: Tensor
    """(T, H * G) fp64, running sum of g in each chunk"""
    q_scale: Tensor
    """(T, H) fp32, scale / |q|"""
    k_scale: Tensor
    """(T, H) fp32, 1 / |k|"""
    read: Tensor
    """(T, H * G, K)"""
    write: Tensor
    """(T, H * G, V), from a zero state; after the scan u"""
    inverse: Tensor
    """(T, H * G, CHUNK) A^-1"""

    def key_scales(self) -> dict[str, Tensor]:
        return {"decay_ptr": self.decay, "k_scale_ptr": self.k_scale}

    def scales(self) -> dict[str, Tensor]:
        return self.key_scales() | {"q_scale_ptr": self.q_scale}


def forward(inputs: Inputs) -> Tensor:
    """o (T, H * G, V) in v's dtype."""
    with torch.cuda.device_of(inputs.v):
        inside = _prepare(inputs)
        state = _scan(inputs, inside)
        out = torch.empty_like(inputs.v, memory_format=torch.contiguous_format)
        output_kernel[inputs.value_grid](
            **inputs.query(), **inputs.key(), **inputs.tables(), **inside.scales(),
            write_ptr=inside.write, state_ptr=state, out_ptr=out,
            V=inputs.v.shape[2], **inputs.options("output"),
        )  # fmt: skip
    return out


def backward(inputs: Inputs, grad_out: Tensor) -> tuple[Tensor, ...]:
    """d q, d k (T, H, K), d v (T, H * G, V), d g, d beta (T, H * G), each in its input's dtype."""
    V = inputs.v.shape[2]
    upstream = {
        "grad_out_ptr": grad_out, "stride_ot": grad_out.stride(0), "stride_oh": grad_out.stride(1),
    }  # fmt: skip
    strengths = {"beta_ptr": inputs.beta, "stride_bt": inputs.beta.stride(0)}
    with torch.cuda.device_of(inputs.v):
        grad_q, grad_k, grad_v, grad_g, grad_beta = (
            torch.empty(x.shape, dtype=x.dtype, device=x.device)
            for x in (inputs.q, inputs.k, inputs.v, inputs.g, inputs.beta)
        )
        inside = _prepare(inputs)
        state = _scan(inputs, inside)
        grad_write = torch.empty_like(inside.write)
        pair_qk, pair_c = torch.empty_like(inside.inverse), _fp32(inputs.g.shape, inputs)
        inner_gradient_kernel[inputs.value_grid](
            **inputs.query(), **inputs.key(), **inputs.tables(), **inside.scales(), **upstream,
            write_ptr=inside.write, grad_write_ptr=grad_write, pair_qk_ptr=pair_qk,
            grad_c_ptr=pair_c, V=V, **inputs.options("inner_gradient"),
        )  # fmt: skip
        grad_state = torch.empty_like(state)
        reverse_scan_kernel[inputs.scan_grid("reverse_scan")](
            **inputs.query(), **inputs.key(), **inputs.row_tables(), **inside.scales(), **upstream,
            read_ptr=inside.read, write_ptr=grad_write, state_ptr=grad_state, H=inputs.q.shape[1],
            V=V, **inputs.options("reverse_scan"),
        )  # fmt: skip
        pair_kk, pair_beta = torch.empty_like(inside.inverse), _fp32(inputs.g.shape, inputs)
        value_gradient_kernel[inputs.value_grid](
            **inputs.key(), **inputs.value(), **inputs.tables(), **inside.key_scales(), **strengths,
            write_ptr=inside.write, inverse_ptr=inside.inverse, grad_write_ptr=grad_write,
            grad_c_ptr=pair_c, grad_v_ptr=grad_v, pair_kk_ptr=pair_kk, grad_beta_ptr=pair_beta,
            V=V, **inputs.options("value_gradient"),
        )  # fmt: skip
        unit_q, unit_k = (_fp32(inputs.q.shape, inputs) for _ in range(2))
        parts = inputs.num_blocks("state_gradient", "BLOCK_K")
        part_g, part_beta = (_fp32((parts, *inputs.g.shape), inputs) for _ in range(2))
        state_gradient_kernel[*inputs.key_grid, parts](
            **inputs.query(), **inputs.key(), **inputs.tables(), **inside.scales(), **upstream,
            **strengths, write_ptr=inside.write, state_ptr=state, grad_write_ptr=grad_write,
            grad_state_ptr=grad_state, pair_qk_ptr=pair_qk, pair_kk_ptr=pair_kk, grad_q_ptr=unit_q,
            grad_k_ptr=unit_k, part_g_ptr=part_g, part_beta_ptr=part_beta, V=V,
            T=inputs.rows.num_tokens, **inputs.options("state_gradient"),
        )  # fmt: skip
        finish_kernel[inputs.key_grid](
            **inputs.query(), **inputs.key(), **inputs.tables(), q_scale_ptr=inside.q_scale,
            k_scale_ptr=inside.k_scale, unit_q_ptr=unit_q, unit_k_ptr=unit_k, pair_c_ptr=pair_c,
            pair_beta_ptr=pair_beta, part_g_ptr=part_g, part_beta_ptr=part_beta, grad_q_ptr=grad_q,
            grad_k_ptr=grad_k, grad_g_ptr=grad_g, grad_beta_ptr=grad_beta, V=V, PARTS=parts,
            T=inputs.rows.num_tokens, scale=inputs.scale, **inputs.options("finish"),
        )  # fmt: skip
    return grad_q, grad_k, grad_v, grad_g, grad_beta


def _fp32(shape: tuple[int, ...], inputs: Inputs) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=inputs.q.device)


def _prepare(inputs: Inputs) -> Inside:
    q, v = inputs.q, inputs.v
    T, H = q.shape[:2]
    heads = inputs.value_heads
    inside = Inside(
        decay=q.new_empty(T, heads, dtype=torch.float64),
        q_scale=q.new_empty(T, H, dtype=torch.float32),
        k_scale=q.new_empty(T, H, dtype=torch.float32),
        read=q.new_empty(T, heads, q.shape[2]),
        write=q.new_empty(T, heads, v.shape[2]),
        inverse=q.new_empty(T, heads, inputs.rows.chunk_size),
    )
    system_kernel[inputs.key_grid](
        **inputs.query(), **inputs.key(), **inputs.tables(), **inputs.gates(), **inside.scales(),
        inverse_ptr=inside.inverse, scale=inputs.scale,
        LEVELS=inputs.rows.chunk_size.bit_length() - 2,
        **inputs.options("system"),
    )  # fmt: skip
    solve_kernel[inputs.value_grid](
        **inputs.key(), **inputs.value(), **inputs.tables(), beta_ptr=inputs.beta,
        stride_bt=inputs.beta.stride(0), inverse_ptr=inside.inverse, decay_ptr=inside.decay,
        k_scale_ptr=inside.k_scale, read_ptr=inside.read, write_ptr=inside.write,
        V=v.shape[2], **inputs.options("solve"),
    )  # fmt: skip
    return inside


def _scan(inputs: Inputs, inside: Inside) -> Tensor:
    """The state before each chunk, (N, H * G, K, V); u takes the place of `inside.write`."""
    q, v = inputs.q, inputs.v
    K, V = q.shape[2], v.shape[2]
    state = q.new_empty(inputs.rows.num_chunks, inputs.value_heads, K, V)
    scan_kernel[inputs.scan_grid("scan")](
        **inputs.key(), **inputs.row_tables(), read_ptr=inside.read, write_ptr=inside.write,
        decay_ptr=inside.decay, k_scale_ptr=inside.k_scale, state_ptr=state, H=q.shape[1],
        V=V, **inputs.options("scan"),
    )  # fmt: skip
    return state
