"""Forward inside chunks: what each chunk asks of the state before it, and what it puts out.

All chunks of all rows at once, one program a chunk and value head; `reference` has the equations.
Where q and k meet each other or a state they go to the tensor cores as they came; their lengths are
fp32 factors of the product's rows and columns.

Shapes: `T tokens . H key heads . G value heads a key head . K, V head dims . N chunks`.
"""

import triton
import triton.language as tl

from .tiles import (
    decay_between,
    load_chunk,
    load_decay,
    load_state,
    load_tile,
    product,
    store_tile,
    this_value_head,
)
from .work import output_work, solve_work

_POINTERS = ["first_ptr", "length_ptr"]


@triton.jit(do_not_specialize=_POINTERS, launch_metadata=solve_work)
def solve_kernel(
    k_ptr, v_ptr, beta_ptr, inverse_ptr, decay_ptr, k_scale_ptr, first_ptr, length_ptr,
    read_ptr, write_ptr,
    stride_kt, stride_kh, stride_vt, stride_vh, stride_bt, G, K, V,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """With A^-1 (T, H * G, CHUNK) of one chunk:

    read (T, H * G, K) = A^-1 beta e^c k      what its writes take back of the state before it
    write (T, H * G, V) = A^-1 beta v         its writes from a zero state
    """
    _first, _length, tokens, inside = load_chunk(first_ptr, length_ptr, CHUNK)
    head, heads, key_head, H = this_value_head(G)
    slots = tl.arange(0, CHUNK)
    k_scale = tl.load(k_scale_ptr + tokens * H + key_head, mask=inside, other=0.0)

    place = tokens * heads + head
    beta = tl.load(beta_ptr + tokens * stride_bt + head, mask=inside, other=0.0)
    beta = beta.to(tl.float32)
    c = tl.load(decay_ptr + place, mask=inside, other=0.0).to(tl.float32)
    inverse = load_tile(inverse_ptr, place, CHUNK, slots, inside, CHUNK)
    weight = (beta * k_scale * tl.exp(c))[:, None]
    for start in range(0, K, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        k = load_tile(k_ptr + key_head * stride_kh, tokens, stride_kt, keys, inside, K)
        read = product(inverse, k * weight, PRECISION)
        store_tile(read_ptr, place, K, keys, inside, K, read)
    for start in range(0, V, BLOCK):
        values = start + tl.arange(0, BLOCK)
        v = load_tile(v_ptr + head * stride_vh, tokens, stride_vt, values, inside, V)
        write = product(inverse, v * beta[:, None], PRECISION)
        store_tile(write_ptr, place, V, values, inside, V, write)


@triton.jit(do_not_specialize=_POINTERS, launch_metadata=output_work)
def output_kernel(
    q_ptr, k_ptr, write_ptr, state_ptr, decay_ptr, q_scale_ptr, k_scale_ptr,
    first_ptr, length_ptr, out_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, G, K, V,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (T, H * G, V) = e^c q S + (q k^T * D) u of one chunk.

    From u (T, H * G, V) and S (N, H * G, K, V), the state before each chunk.
    """
    first, length, tokens, inside = load_chunk(first_ptr, length_ptr, CHUNK)
    head, heads, key_head, H = this_value_head(G)
    slots = tl.arange(0, CHUNK)
    keys = tl.arange(0, BLOCK_K)

    q = load_tile(q_ptr + key_head * stride_qh, tokens, stride_qt, keys, inside, K)
    k = load_tile(k_ptr + key_head * stride_kh, tokens, stride_kt, keys, inside, K)
    q_scale = tl.load(q_scale_ptr + tokens * H + key_head, mask=inside, other=0.0)
    k_scale = tl.load(k_scale_ptr + tokens * H + key_head, mask=inside, other=0.0)
    qk = product(q, tl.trans(k), PRECISION) * q_scale[:, None] * k_scale[None, :]
    causal = slots[:, None] >= slots[None, :]

    high, low, _, _ = load_decay(decay_ptr, first, length, heads, head, CHUNK)
    inner = (qk * decay_between(high, low, high, low, causal)).to(q.dtype)
    from_state = (q_scale * tl.exp(high))[:, None]
    place = tokens * heads + head
    for start in range(0, V, BLOCK_V):
        values = start + tl.arange(0, BLOCK_V)
        u = load_tile(write_ptr, place, V, values, inside, V)
        state = load_state(
            state_ptr, tl.program_id(0).to(tl.int64) * heads + head, K, V, keys, values
        )
        out = product(q, state, PRECISION) * from_state + product(inner, u, PRECISION)
        store_tile(out_ptr, place, V, values, inside, V, out)
