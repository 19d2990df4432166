"""The state from chunk to chunk, forward, and its gradient, backward: the only sequential part.

One program a row, value head and block of value columns walks through the chunks of its row with
its part of the state in registers, in fp32. Columns of the state never meet, so blocks need no
exchange. Longest rows start first.

Shapes: `T tokens . H key heads . G value heads a key head . K, V head dims . N chunks . R rows`.
"""

import triton
import triton.language as tl

from .tiles import load_decay, load_tile, product, store_state, store_tile
from .work import reverse_scan_work, scan_work

_POINTERS = ["order_ptr", "row_start_ptr", "row_chunk_ptr"]


@triton.jit
def _row_and_head(order_ptr, row_start_ptr, row_chunk_ptr, V, heads, BLOCK_V: tl.constexpr):
    """What this program works on: first token, end, first chunk of the row; head; value columns."""
    blocks = tl.cdiv(V, BLOCK_V)
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(order_ptr + program // (blocks * heads))
    head = program // blocks % heads
    values = (program % blocks).to(tl.int32) * BLOCK_V + tl.arange(0, BLOCK_V)
    start = tl.load(row_start_ptr + row)
    end = tl.load(row_start_ptr + row + 1)
    return start, end, tl.load(row_chunk_ptr + row), head, values


@triton.jit(do_not_specialize=_POINTERS, launch_metadata=scan_work)
def scan_kernel(
    k_ptr, read_ptr, write_ptr, decay_ptr, k_scale_ptr, state_ptr,
    order_ptr, row_start_ptr, row_chunk_ptr, stride_kt, stride_kh, H, G, K, V,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """u = write - read S over `write`; S' = e^{c_C} S + k^T e^{c_C - c} u.

    state (N, H * G, K, V) gets the state before each chunk.
    """
    heads = H * G
    start, end, chunk, head, values = _row_and_head(
        order_ptr, row_start_ptr, row_chunk_ptr, V, heads, BLOCK_V
    )
    key_head = head // G
    offsets = tl.arange(0, CHUNK)
    keys = tl.arange(0, BLOCK_K)
    state = tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    for number in range(tl.cdiv(end - start, CHUNK)):
        first = start + number * CHUNK
        length = tl.minimum(end - first, CHUNK).to(tl.int32)
        tokens = first + offsets
        inside = offsets < length
        place = tokens * heads + head
        store_state(state_ptr, chunk * heads + head, K, V, keys, values, state)
        read = load_tile(read_ptr, place, K, keys, inside, K)
        u = load_tile(write_ptr, place, V, values, inside, V)
        u = u.to(tl.float32) - product(read, state, PRECISION)
        store_tile(write_ptr, place, V, values, inside, V, u)
        high, low, last, last_low = load_decay(decay_ptr, first, length, heads, head, CHUNK)
        k_scale = tl.load(k_scale_ptr + tokens * H + key_head, mask=inside, other=0.0)
        to_end = k_scale * tl.exp((last - high) + (last_low - low))
        k = load_tile(k_ptr + key_head * stride_kh, tokens, stride_kt, keys, inside, K)
        state = state * tl.exp(last) + product(tl.trans(k), u * to_end[:, None], PRECISION)
        chunk += 1


@triton.jit(do_not_specialize=_POINTERS, launch_metadata=reverse_scan_work)
def reverse_scan_kernel(
    q_ptr, k_ptr, read_ptr, grad_out_ptr, write_ptr, decay_ptr, q_scale_ptr, k_scale_ptr, state_ptr,
    order_ptr, row_start_ptr, row_chunk_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_ot, stride_oh, H, G, K, V,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """d u = (d u inside the chunk) + e^{c_C - c} k d S' over `write`, and
    d S = e^{c_C} d S' + (e^c q)^T d out - read^T d u.

    state (N, H * G, K, V) gets d S', the gradient of the state after each chunk.
    """
    heads = H * G
    start, end, chunk, head, values = _row_and_head(
        order_ptr, row_start_ptr, row_chunk_ptr, V, heads, BLOCK_V
    )
    key_head = head // G
    num_chunks = tl.cdiv(end - start, CHUNK)
    chunk += num_chunks
    offsets = tl.arange(0, CHUNK)
    keys = tl.arange(0, BLOCK_K)
    state = tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    for back in range(num_chunks):
        first = start + (num_chunks - 1 - back) * CHUNK
        chunk -= 1
        length = tl.minimum(end - first, CHUNK).to(tl.int32)
        tokens = first + offsets
        inside = offsets < length
        place = tokens * heads + head
        store_state(state_ptr, chunk * heads + head, K, V, keys, values, state)
        high, low, last, last_low = load_decay(decay_ptr, first, length, heads, head, CHUNK)
        k_scale = tl.load(k_scale_ptr + tokens * H + key_head, mask=inside, other=0.0)
        q_scale = tl.load(q_scale_ptr + tokens * H + key_head, mask=inside, other=0.0)
        to_end = k_scale * tl.exp((last - high) + (last_low - low))
        k = load_tile(k_ptr + key_head * stride_kh, tokens, stride_kt, keys, inside, K)
        grad_u = load_tile(write_ptr, place, V, values, inside, V).to(tl.float32)
        grad_u += product(k, state, PRECISION) * to_end[:, None]
        store_tile(write_ptr, place, V, values, inside, V, grad_u)
        read = load_tile(read_ptr, place, K, keys, inside, K)
        q = load_tile(q_ptr + key_head * stride_qh, tokens, stride_qt, keys, inside, K)
        at = grad_out_ptr + head * stride_oh
        grad_out = load_tile(at, tokens, stride_ot, values, inside, V).to(tl.float32)
        grad_out *= (q_scale * tl.exp(high))[:, None]
        state = state * tl.exp(last) + product(tl.trans(q), grad_out, PRECISION)
        state -= product(tl.trans(read), grad_u, PRECISION)
