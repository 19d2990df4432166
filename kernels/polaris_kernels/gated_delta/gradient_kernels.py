"""Backward inside chunks: all chunks of all rows at once, one program a chunk and head.

`inner_gradient_kernel` runs before the reverse scan, the others after it; `reference` has the
equations. A program has a value head, or a key head where its value heads' shares are summed. Tiles
are 64 columns wide at most: of [chunk, K] tiles at K = 128, three sums in fp32 would fill the
register file, and so would what a loop over heads keeps for its next turn.

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
    this_key_head,
    this_value_head,
)
from .work import finish_work, inner_gradient_work, state_gradient_work, value_gradient_work

_POINTERS = ["first_ptr", "length_ptr"]
_WITH_TOKENS = [*_POINTERS, "T"]


@triton.jit(do_not_specialize=_POINTERS, launch_metadata=inner_gradient_work)
def inner_gradient_kernel(
    q_ptr, k_ptr, write_ptr, grad_out_ptr,
    decay_ptr, q_scale_ptr, k_scale_ptr, first_ptr, length_ptr,
    grad_write_ptr, pair_qk_ptr, grad_c_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_ot, stride_oh, G, K, V,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What d out says of its own chunk, with u (T, H * G, V):

    P^T d out (T, H * G, V), a part of d u; (d P * D)^T (T, H * G, CHUNK); the share of these pairs
    in d c (T, H * G) fp32. Pairs lie transposed, keys down and queries across: P^T then is an
    operand as it comes.
    """
    first, length, tokens, inside = load_chunk(first_ptr, length_ptr, CHUNK)
    head, heads, key_head, H = this_value_head(G)
    slots = tl.arange(0, CHUNK)
    causal = slots[:, None] <= slots[None, :]
    strictly = slots[:, None] < slots[None, :]
    q_scale = tl.load(q_scale_ptr + tokens * H + key_head, mask=inside, other=0.0)
    k_scale = tl.load(k_scale_ptr + tokens * H + key_head, mask=inside, other=0.0)

    place = tokens * heads + head
    p = tl.zeros([CHUNK, CHUNK], tl.float32)
    for start in range(0, K, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        k = load_tile(k_ptr + key_head * stride_kh, tokens, stride_kt, keys, inside, K)
        q = load_tile(q_ptr + key_head * stride_qh, tokens, stride_qt, keys, inside, K)
        p += product(k, tl.trans(q), PRECISION)
    high, low, _, _ = load_decay(decay_ptr, first, length, heads, head, CHUNK)
    decay = decay_between(-high, -low, -high, -low, causal)
    p *= decay * (k_scale[:, None] * q_scale[None, :])
    grad_p = tl.zeros([CHUNK, CHUNK], tl.float32)
    for start in range(0, V, BLOCK):
        values = start + tl.arange(0, BLOCK)
        at = grad_out_ptr + head * stride_oh
        grad_out = load_tile(at, tokens, stride_ot, values, inside, V)
        made = product(p.to(grad_out.dtype), grad_out, PRECISION)
        store_tile(grad_write_ptr, place, V, values, inside, V, made)
        u = load_tile(write_ptr, place, V, values, inside, V)
        grad_p += product(u, tl.trans(grad_out), PRECISION)
    # pairs on the diagonal hold no decay
    pairs = tl.where(strictly, grad_p * p, 0.0)
    tl.store(grad_c_ptr + place, tl.sum(pairs, 0) - tl.sum(pairs, 1), mask=inside)
    store_tile(pair_qk_ptr, place, CHUNK, slots, inside, CHUNK, grad_p * decay)


@triton.jit(do_not_specialize=_POINTERS, launch_metadata=value_gradient_work)
def value_gradient_kernel(
    k_ptr, v_ptr, beta_ptr, write_ptr, inverse_ptr, grad_write_ptr, grad_c_ptr,
    decay_ptr, k_scale_ptr, first_ptr, length_ptr, grad_v_ptr, pair_kk_ptr, grad_beta_ptr,
    stride_kt, stride_kh, stride_vt, stride_vh, stride_bt, G, K, V,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Back through the system of one chunk, from u and d u (T, H * G, V) and A^-1:

    R = A^-T d u over `grad_write`; d v (T, H * G, V); M + M^T (T, H * G, CHUNK); the share of pairs
    of keys added to d c, and d beta but for the state's share, (T, H * G) fp32.
    """
    first, length, tokens, inside = load_chunk(first_ptr, length_ptr, CHUNK)
    head, heads, key_head, H = this_value_head(G)
    slots = tl.arange(0, CHUNK)
    strictly = slots[:, None] > slots[None, :]
    k_scale = tl.load(k_scale_ptr + tokens * H + key_head, mask=inside, other=0.0)

    place = tokens * heads + head
    beta = tl.load(beta_ptr + tokens * stride_bt + head, mask=inside, other=0.0)
    beta = beta.to(tl.float32)
    inverse = load_tile(inverse_ptr, place, CHUNK, slots, inside, CHUNK)
    grad_a = tl.zeros([CHUNK, CHUNK], tl.float32)
    grad_beta = tl.zeros([CHUNK], tl.float32)
    for start in range(0, V, BLOCK):
        values = start + tl.arange(0, BLOCK)
        grad_u = load_tile(grad_write_ptr, place, V, values, inside, V)
        r = product(tl.trans(inverse), grad_u, PRECISION)
        store_tile(grad_write_ptr, place, V, values, inside, V, r)
        store_tile(grad_v_ptr, place, V, values, inside, V, r * beta[:, None])
        v = load_tile(v_ptr + head * stride_vh, tokens, stride_vt, values, inside, V)
        grad_beta += tl.sum(r * v, 1)
        u = load_tile(write_ptr, place, V, values, inside, V)
        grad_a -= product(r.to(u.dtype), tl.trans(u), PRECISION)

    kk = tl.zeros([CHUNK, CHUNK], tl.float32)
    for start in range(0, K, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        k = load_tile(k_ptr + key_head * stride_kh, tokens, stride_kt, keys, inside, K)
        kk += product(k, tl.trans(k), PRECISION)
    high, low, _, _ = load_decay(decay_ptr, first, length, heads, head, CHUNK)
    grad_a *= decay_between(high, low, high, low, strictly)
    pairs = grad_a * kk * (k_scale[:, None] * k_scale[None, :])
    grad_beta += tl.sum(pairs, 1)
    tl.store(grad_beta_ptr + place, grad_beta, mask=inside)
    pairs *= beta[:, None]
    grad_c = tl.load(grad_c_ptr + place, mask=inside, other=0.0)
    grad_c += tl.sum(pairs, 1) - tl.sum(pairs, 0)
    tl.store(grad_c_ptr + place, grad_c, mask=inside)
    m = grad_a * beta[:, None]
    store_tile(pair_kk_ptr, place, CHUNK, slots, inside, CHUNK, m + tl.trans(m))


@triton.jit
def _unit_rows(ptr, stride_row, scale_ptr, H, rows, is_row, columns, width):
    """Rows of q or k scaled to their lengths, fp32."""
    scale = tl.load(scale_ptr + rows * H, mask=is_row, other=0.0)
    return load_tile(ptr, rows, stride_row, columns, is_row, width) * scale[:, None]


@triton.jit(do_not_specialize=_WITH_TOKENS, launch_metadata=state_gradient_work)
def state_gradient_kernel(
    q_ptr, k_ptr, beta_ptr, write_ptr, state_ptr, grad_out_ptr, grad_write_ptr, grad_state_ptr,
    pair_qk_ptr, pair_kk_ptr, decay_ptr, q_scale_ptr, k_scale_ptr, first_ptr, length_ptr,
    grad_q_ptr, grad_k_ptr, part_g_ptr, part_beta_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_bt, stride_ot, stride_oh, T, G, K, V,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Key columns program_id(2) of d unit q and d unit k (T, H, K) fp32 of one chunk.

    From u and R (T, H * G, V), S and d S' (N, H * G, K, V), and the pairs' coefficients. What these
    columns of the states say of d g and d beta goes to part (K blocks, T, H * G) fp32.
    """
    first, length, tokens, inside = load_chunk(first_ptr, length_ptr, CHUNK)
    key_head, H, heads = this_key_head(G)
    slots = tl.arange(0, CHUNK)
    keys = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    q_scale = tl.load(q_scale_ptr + tokens * H + key_head, mask=inside, other=0.0)
    k_scale = tl.load(k_scale_ptr + tokens * H + key_head, mask=inside, other=0.0)
    grad_q = tl.zeros([CHUNK, BLOCK_K], tl.float32)
    grad_k = tl.zeros([CHUNK, BLOCK_K], tl.float32)

    # what could be hoisted, addresses and masks of tiles, would spill
    for member in tl.range(G, disable_licm=True):
        head = key_head * G + member
        high, low, last, last_low = load_decay(decay_ptr, first, length, heads, head, CHUNK)
        since_start = tl.exp(high)
        beta = tl.load(beta_ptr + tokens * stride_bt + head, mask=inside, other=0.0)
        beta = beta.to(tl.float32)
        place = tokens * heads + head
        at_state = tl.program_id(0).to(tl.int64) * heads + head
        key_ptr = k_ptr + key_head * stride_kh
        query_ptr = q_ptr + key_head * stride_qh

        # R S^T
        found = tl.zeros([CHUNK, BLOCK_K], tl.float32)
        for start in range(0, V, BLOCK_V):
            values = start + tl.arange(0, BLOCK_V)
            r = load_tile(grad_write_ptr, place, V, values, inside, V)
            state = load_state(state_ptr, at_state, K, V, keys, values)
            found += product(r, tl.trans(state), PRECISION)
        k = load_tile(key_ptr, tokens, stride_kt, keys, inside, K)
        along = tl.sum(found * k, 1) * k_scale * since_start
        grad_k -= found * (beta * since_start)[:, None]

        # u d S'^T
        found = tl.zeros([CHUNK, BLOCK_K], tl.float32)
        kept = tl.zeros([BLOCK_K], tl.float32)
        for start in range(0, V, BLOCK_V):
            values = start + tl.arange(0, BLOCK_V)
            u = load_tile(write_ptr, place, V, values, inside, V)
            state = load_state(state_ptr, at_state, K, V, keys, values)
            grad_next = load_state(grad_state_ptr, at_state, K, V, keys, values)
            found += product(u, tl.trans(grad_next), PRECISION)
            kept += tl.sum(state.to(tl.float32) * grad_next, 1)
        found *= tl.exp((last - high) + (last_low - low))[:, None]
        k = load_tile(key_ptr, tokens, stride_kt, keys, inside, K)
        carried = tl.sum(found * k, 1) * k_scale
        whole = tl.exp(last) * tl.sum(kept, 0)
        grad_k += found

        # d out S^T
        found = tl.zeros([CHUNK, BLOCK_K], tl.float32)
        for start in range(0, V, BLOCK_V):
            values = start + tl.arange(0, BLOCK_V)
            at = grad_out_ptr + head * stride_oh
            grad_out = load_tile(at, tokens, stride_ot, values, inside, V)
            state = load_state(state_ptr, at_state, K, V, keys, values)
            found += product(grad_out, tl.trans(state), PRECISION)
        found *= since_start[:, None]
        q = load_tile(query_ptr, tokens, stride_qt, keys, inside, K)
        grad_c = tl.sum(found * q, 1) * q_scale - beta * along
        grad_q += found
        part = tl.program_id(2).to(tl.int64) * T * heads + place
        # what all tokens carry to the next state, less what those from here on do
        grad_g = tl.cumsum(grad_c, 0, reverse=True) + (tl.cumsum(carried, 0) - carried) + whole
        tl.store(part_g_ptr + part, grad_g, mask=inside)
        tl.store(part_beta_ptr + part, -along, mask=inside)

        # the pairs' products, one a loop: side by side, each warp would hold all columns of q and k
        for start in range(0, CHUNK, BLOCK_C):
            others = start + tl.arange(0, BLOCK_C)
            is_row = others < length
            pair = load_tile(pair_qk_ptr, place, CHUNK, others, inside, CHUNK)
            at = q_scale_ptr + key_head
            unit = _unit_rows(query_ptr, stride_qt, at, H, first + others, is_row, keys, K)
            grad_k += product(pair, unit, PRECISION)
        for start in range(0, CHUNK, BLOCK_C):
            others = start + tl.arange(0, BLOCK_C)
            is_row = others < length
            of_others = (first + others) * heads + head
            pair = load_tile(pair_qk_ptr, of_others, CHUNK, slots, is_row, CHUNK)
            at = k_scale_ptr + key_head
            unit = _unit_rows(key_ptr, stride_kt, at, H, first + others, is_row, keys, K)
            grad_q += product(tl.trans(pair), unit, PRECISION)
        for start in range(0, CHUNK, BLOCK_C):
            others = start + tl.arange(0, BLOCK_C)
            is_row = others < length
            pair = load_tile(pair_kk_ptr, place, CHUNK, others, inside, CHUNK)
            at = k_scale_ptr + key_head
            unit = _unit_rows(key_ptr, stride_kt, at, H, first + others, is_row, keys, K)
            grad_k += product(pair, unit, PRECISION)

    place = tokens * H + key_head
    store_tile(grad_q_ptr, place, K, keys, inside, K, grad_q)
    store_tile(grad_k_ptr, place, K, keys, inside, K, grad_k)


@triton.jit
def _through_norm(grad, x, scale, factor):
    """d x from d (factor * x / |x|), with scale = factor / |x|."""
    x = x.to(tl.float32)
    along = tl.sum(grad * x, 1) * (scale / factor) * (scale / factor)
    return (grad - x * along[:, None]) * scale[:, None]


@triton.jit(do_not_specialize=_WITH_TOKENS, launch_metadata=finish_work)
def finish_kernel(
    q_ptr, k_ptr, q_scale_ptr, k_scale_ptr, first_ptr, length_ptr,
    unit_q_ptr, unit_k_ptr, pair_c_ptr, pair_beta_ptr, part_g_ptr, part_beta_ptr,
    grad_q_ptr, grad_k_ptr, grad_g_ptr, grad_beta_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, T, G, K, V, PARTS, scale,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over the K blocks, and back through the normalisation of q and k, of one chunk."""
    _first, _length, tokens, inside = load_chunk(first_ptr, length_ptr, CHUNK)
    key_head, H, heads = this_key_head(G)
    keys = tl.arange(0, BLOCK_K)
    place = tokens * H + key_head

    grad = load_tile(unit_q_ptr, place, K, keys, inside, K)
    q = load_tile(q_ptr + key_head * stride_qh, tokens, stride_qt, keys, inside, K)
    q_scale = tl.load(q_scale_ptr + place, mask=inside, other=0.0)
    grad = _through_norm(grad, q, q_scale, scale)
    store_tile(grad_q_ptr, place, K, keys, inside, K, grad)
    grad = load_tile(unit_k_ptr, place, K, keys, inside, K)
    k = load_tile(k_ptr + key_head * stride_kh, tokens, stride_kt, keys, inside, K)
    k_scale = tl.load(k_scale_ptr + place, mask=inside, other=0.0)
    grad = _through_norm(grad, k, k_scale, 1.0)
    store_tile(grad_k_ptr, place, K, keys, inside, K, grad)

    for member in range(G):
        place = tokens * heads + key_head * G + member
        grad_c = tl.load(pair_c_ptr + place, mask=inside, other=0.0)
        grad_g = tl.cumsum(grad_c, 0, reverse=True)
        grad_beta = tl.load(pair_beta_ptr + place, mask=inside, other=0.0)
        at = place
        for _ in range(PARTS):
            grad_g += tl.load(part_g_ptr + at, mask=inside, other=0.0)
            grad_beta += tl.load(part_beta_ptr + at, mask=inside, other=0.0)
            at += tl.cast(T, tl.int64) * heads
        tl.store(grad_g_ptr + place, grad_g.to(grad_g_ptr.dtype.element_ty), mask=inside)
        tl.store(grad_beta_ptr + place, grad_beta.to(grad_beta_ptr.dtype.element_ty), mask=inside)
