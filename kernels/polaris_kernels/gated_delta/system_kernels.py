"""Each chunk's triangular system and its inverse, with the lengths of q and k and the decays.

All chunks of all rows at once, one program a chunk and key head; `reference` has the equations.

Shapes: `T tokens . H key heads . G value heads a key head . K key head dim . N chunks`.
"""

import triton
import triton.language as tl

from .tiles import decay_between, load_chunk, load_tile, product, store_tile, this_key_head
from .work import system_work

NORM_EPS = tl.constexpr(1e-6)
_POINTERS = ["first_ptr", "length_ptr"]


@triton.jit
def inverse_of_unit_lower(lower, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """(I + lower)^-1 for a strictly lower triangular (2^LEVELS, 2^LEVELS) fp32.

    Diagonal blocks are inverted in pairs, from size 1 up: with X the inverses of two neighbours
    and B the block below the first, [[X1, 0], [-X2 B X1, X2]] is that of both. Only products with
    inverses that exist occur, so large entries do not cancel as powers of `lower` would.
    """
    i = tl.arange(0, lower.shape[0])[:, None]
    j = tl.arange(0, lower.shape[0])[None, :]
    first_pairs = (i // 2 == j // 2) & (i > j)
    found = tl.where(i == j, 1.0, tl.where(first_pairs, -lower, 0.0))
    for level in tl.static_range(1, LEVELS):
        block_i = i >> level
        block_j = j >> level
        below = (block_i == block_j + 1) & (block_j % 2 == 0)
        right = tl.dot(tl.where(below, lower, 0.0), found, input_precision=PRECISION)
        found -= tl.dot(found, right, input_precision=PRECISION)
    return found


@triton.jit
def _load_gates(g_ptr, stride_g, beta_ptr, stride_beta, decay_ptr, tokens, inside, head, heads, c):
    """c + running sum of g, which is stored too, in two fp32 parts; its last value; and beta."""
    g = tl.load(g_ptr + tokens * stride_g + head, mask=inside, other=0.0).to(tl.float64)
    beta = tl.load(beta_ptr + tokens * stride_beta + head, mask=inside, other=0.0).to(tl.float32)
    sums = c + tl.cumsum(g, 0)
    tl.store(decay_ptr + tokens * heads + head, sums, mask=inside)
    high = sums.to(tl.float32)
    return high, (sums - high).to(tl.float32), c + tl.sum(g, 0), beta


@triton.jit(do_not_specialize=_POINTERS, launch_metadata=system_work)
def system_kernel(
    q_ptr, k_ptr, g_ptr, beta_ptr, first_ptr, length_ptr,
    q_scale_ptr, k_scale_ptr, decay_ptr, inverse_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_gt, stride_bt, G, K, scale,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one chunk: scale / |q| and 1 / |k| (T, H) fp32, decay c (T, H * G) fp64, and
    A^-1 (T, H * G, CHUNK).

    A is inverted in halves 0 and 1 of 2^LEVELS tokens and what connects them: as an operand in
    fp32, all of it would take half the register file.
    """
    HALF: tl.constexpr = CHUNK // 2
    _first, length, t0, in0 = load_chunk(first_ptr, length_ptr, HALF)
    key_head, H, heads = this_key_head(G)
    slots = tl.arange(0, HALF)
    t1 = t0 + HALF
    in1 = slots + HALF < length
    strictly = slots[:, None] > slots[None, :]

    q_square0 = tl.zeros([HALF], tl.float32)
    q_square1 = tl.zeros([HALF], tl.float32)
    k_square0 = tl.zeros([HALF], tl.float32)
    k_square1 = tl.zeros([HALF], tl.float32)
    kk00 = tl.zeros([HALF, HALF], tl.float32)
    kk10 = tl.zeros([HALF, HALF], tl.float32)
    kk11 = tl.zeros([HALF, HALF], tl.float32)
    for start in range(0, K, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        q_square0 += _squares(q_ptr + key_head * stride_qh, t0, stride_qt, keys, in0, K)
        q_square1 += _squares(q_ptr + key_head * stride_qh, t1, stride_qt, keys, in1, K)
        k_square0 += _squares(k_ptr + key_head * stride_kh, t0, stride_kt, keys, in0, K)
        k_square1 += _squares(k_ptr + key_head * stride_kh, t1, stride_kt, keys, in1, K)
        k0 = load_tile(k_ptr + key_head * stride_kh, t0, stride_kt, keys, in0, K)
        k1 = load_tile(k_ptr + key_head * stride_kh, t1, stride_kt, keys, in1, K)
        kk00 += product(k0, tl.trans(k0), PRECISION)
        kk10 += product(k1, tl.trans(k0), PRECISION)
        kk11 += product(k1, tl.trans(k1), PRECISION)
    unit0 = tl.rsqrt(k_square0 + NORM_EPS)
    unit1 = tl.rsqrt(k_square1 + NORM_EPS)
    tl.store(q_scale_ptr + t0 * H + key_head, scale * tl.rsqrt(q_square0 + NORM_EPS), mask=in0)
    tl.store(q_scale_ptr + t1 * H + key_head, scale * tl.rsqrt(q_square1 + NORM_EPS), mask=in1)
    tl.store(k_scale_ptr + t0 * H + key_head, unit0, mask=in0)
    tl.store(k_scale_ptr + t1 * H + key_head, unit1, mask=in1)
    kk00 *= unit0[:, None] * unit0[None, :]
    kk10 *= unit1[:, None] * unit0[None, :]
    kk11 *= unit1[:, None] * unit1[None, :]

    # what could be hoisted, addresses and masks of tiles, would spill
    for member in tl.range(G, disable_licm=True):
        head = key_head * G + member
        high0, low0, middle, beta0 = _load_gates(
            g_ptr, stride_gt, beta_ptr, stride_bt, decay_ptr, t0, in0, head, heads, 0.0
        )
        high1, low1, _, beta1 = _load_gates(
            g_ptr, stride_gt, beta_ptr, stride_bt, decay_ptr, t1, in1, head, heads, middle
        )
        place0 = t0 * heads + head
        place1 = t1 * heads + head
        lower = kk00 * decay_between(high0, low0, high0, low0, strictly) * beta0[:, None]
        inverse00 = inverse_of_unit_lower(lower, LEVELS, PRECISION)
        store_tile(inverse_ptr, place0, CHUNK, slots, in0, CHUNK, inverse00)
        above = tl.zeros([HALF, HALF], tl.float32)
        store_tile(inverse_ptr + HALF, place0, CHUNK, slots, in0, CHUNK, above)
        lower = kk11 * decay_between(high1, low1, high1, low1, strictly) * beta1[:, None]
        inverse11 = inverse_of_unit_lower(lower, LEVELS, PRECISION)
        store_tile(inverse_ptr + HALF, place1, CHUNK, slots, in1, CHUNK, inverse11)
        # every token of half 1 comes after every one of half 0
        everywhere = (high1[:, None] <= 0.0) | (high0[None, :] <= 0.0)
        lower = kk10 * decay_between(high1, low1, high0, low0, everywhere) * beta1[:, None]
        lower = tl.dot(lower, inverse00, input_precision=PRECISION)
        inverse10 = -tl.dot(inverse11, lower, input_precision=PRECISION)
        store_tile(inverse_ptr, place1, CHUNK, slots, in1, CHUNK, inverse10)


@triton.jit
def _squares(ptr, rows, stride_row, columns, is_row, width):
    x = load_tile(ptr, rows, stride_row, columns, is_row, width).to(tl.float32)
    return tl.sum(x * x, 1)
