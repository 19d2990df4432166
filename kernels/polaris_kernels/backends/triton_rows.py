"""The universal row kernels: logits -> statistics -> d loss / d raw logits, one program a row.

With v = s (raw logit, after bias and rounding), or tanh(cap_scale * s) under a softcap,
z = scale * v, and, with m = max v and in base 2, d = (v - m) scale log2(e), E = 2^d, S = sum E:
    logp = (d_target - log2 S) ln 2       entropy = (log2 S - sum(d E) / S) ln 2
    lse  = m scale + log2 S ln 2
    dz_j = E_j (alpha + beta d_j) + gamma [j = target]
    alpha = (-g_logp + g_lse - g_H (H - log S)) / S     beta = -g_H ln 2 / S     gamma = g_logp
and d loss / d s = dz * scale, times cap_scale (1 - v^2) under a softcap. A negative scale negates
v and itself first (FLIPS), so that m belongs to the largest z.

Three floats a row carry any per-token loss, an entropy bonus and a z-loss. A row whose three are 0
is written as zeros and never read, so it may hold anything.

Shapes: `C rows of logits . V vocab . LANES columns side by side . ITEMS columns a lane has in one
tile`. Rows are `stride_row` elements apart, with any number of unused columns behind the V.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# below any logit, and finite even times a scale: (floor - maximum) * scale * 0 must stay 0
FLOOR = tl.constexpr(-1e30)
# 2^d is 0 from far above here; a d of -inf, which a banned id has, is lifted to it: d E must be 0
LOWEST = tl.constexpr(-1e4)

# operations a logit costs, for a profiler: maximum, shift, scale, exponential, two sums
_STATISTICS_FLOPS = 8
_GRADIENT_FLOPS = 7


def _statistics_work(grid, kernel, args):
    rows, width = grid[0], args["V"]
    return {
        "name": f"{kernel.name}_V{width}",
        "flops": _STATISTICS_FLOPS * rows * width,
        "bytes": rows * width * args["logits_ptr"].element_size(),
    }


def _gradient_work(grid, kernel, args):
    rows, width = grid[0], args["V"]
    moved = args["logits_ptr"].element_size() + args["out_ptr"].element_size()
    return {
        "name": f"{kernel.name}_V{width}",
        "flops": _GRADIENT_FLOPS * rows * width,
        "bytes": rows * width * moved,
    }


@triton.jit
def _tanh(x):
    far = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    far = (1.0 - far) / (1.0 + far)
    y = tl.where(x < 0, -far, far)
    if x.dtype == tl.float32:
        # 1 - e loses digits near 0: the series is exact to fp32 below 1/4
        q = x * x
        near = tl.fma(q, 62.0 / 2835.0 + q * 0.0, -17.0 / 315.0 + q * 0.0)
        near = tl.fma(q, near, 2.0 / 15.0 + q * 0.0)
        near = tl.fma(q, near, -1.0 / 3.0 + q * 0.0)
        y = tl.where(q < 0.0625, tl.fma(q * x, near, x), y)
    return y


@triton.jit
def _round_to_bf16(x):
    """fp32 with the 16 low bits rounded away, half to even; a plain cast truncates in Triton's
    interpreter."""
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def _values(
    row_ptr, bias_ptr, columns, mask, cap_scale, ACC: tl.constexpr, MASKED: tl.constexpr,
    HAS_BIAS: tl.constexpr, ROUNDS: tl.constexpr, HAS_CAP: tl.constexpr, FLIPS: tl.constexpr,
):  # fmt: skip
    """v of some columns; what it holds where the mask is off is not defined."""
    if MASKED:
        v = tl.load(row_ptr + columns, mask=mask, other=0.0).to(ACC)
        if HAS_BIAS:
            v += tl.load(bias_ptr + columns, mask=mask, other=0.0).to(ACC)
    else:
        v = tl.load(row_ptr + columns).to(ACC)
        if HAS_BIAS:
            v += tl.load(bias_ptr + columns).to(ACC)
    if ROUNDS:
        v = _round_to_bf16(v.to(tl.float32)).to(ACC)
    if HAS_CAP:
        v = _tanh(v * tl.full([1], cap_scale, ACC))
    if FLIPS:
        v = -v
    return v


@triton.jit
def _lift(d):
    """d, no lower than LOWEST; nan stays."""
    return tl.maximum(d, LOWEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _fold(m, s, t, v, mask, factor, MASKED: tl.constexpr):
    """Fold a tile v (ITEMS, LANES) into each lane's maximum, sum E and sum d E."""
    at_most = v
    if MASKED:
        at_most = tl.where(mask, v, FLOOR)
    m_new = tl.maximum(m, tl.max(at_most, 0))
    # the difference comes first: exact near the maximum, and 0 at it
    d = _lift((v - m_new[None, :]) * factor)
    if MASKED:
        d = tl.where(mask, d, 0.0)
    e = tl.exp2(d)
    if MASKED:
        e = tl.where(mask, e, 0.0)
    moved = (m - m_new) * factor
    shrink = tl.exp2(moved)
    t = (t + moved * s) * shrink + tl.sum(d * e, 0)
    s = s * shrink + tl.sum(e, 0)
    return m_new, s, t


@triton.jit(
    do_not_specialize=[
        "targets_ptr", "kept_ptr", "scale_ptr",
        "logp_ptr", "entropy_ptr", "lse_ptr", "shift_ptr", "sum_ptr",
    ],
    launch_metadata=_statistics_work,
)  # fmt: skip
def row_statistics_kernel(
    logits_ptr, stride_row, bias_ptr, targets_ptr, kept_ptr, scale_ptr,
    logp_ptr, entropy_ptr, lse_ptr, shift_ptr, sum_ptr,
    V, scale: tl.float64, cap_scale: tl.float64,
    HAS_BIAS: tl.constexpr, HAS_KEPT: tl.constexpr, HAS_SCALE: tl.constexpr,
    ROUNDS: tl.constexpr, HAS_CAP: tl.constexpr, FLIPS: tl.constexpr,
    ITEMS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Statistics of row program_id(0) of logits (C, V). Reads it once, writes five numbers.

    Rows with kept 0 are not read: log-prob, entropy, lse and shift 0, sum 1. A target outside
    [0, V) gives nan.
    """
    ACC: tl.constexpr = sum_ptr.dtype.element_ty
    TILE: tl.constexpr = ITEMS * LANES
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_row
    if HAS_SCALE:
        slope = tl.load(scale_ptr + row)
    else:
        slope = tl.sum(tl.full([1], scale, ACC), 0)
    if FLIPS:
        slope = -slope
    factor = slope * LOG2E
    width = V
    if HAS_KEPT:
        kept = tl.load(kept_ptr + row) != 0
        width = tl.where(kept, V, 0)
    tile = tl.arange(0, ITEMS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    m = tl.full([LANES], FLOOR, ACC)
    s = tl.zeros([LANES], ACC)
    t = tl.zeros([LANES], ACC)
    whole = width // TILE * TILE
    for start in range(0, whole, TILE):
        v = _values(
            row_ptr, bias_ptr, start + tile, None, cap_scale, ACC, False,
            HAS_BIAS, ROUNDS, HAS_CAP, FLIPS,
        )  # fmt: skip
        m, s, t = _fold(m, s, t, v, None, factor, False)
    if whole < width:
        columns = whole + tile
        mask = columns < width
        v = _values(
            row_ptr, bias_ptr, columns, mask, cap_scale, ACC, True,
            HAS_BIAS, ROUNDS, HAS_CAP, FLIPS,
        )  # fmt: skip
        m, s, t = _fold(m, s, t, v, mask, factor, True)

    # lanes that saw no column have s = t = 0
    shift = tl.max(m, 0)
    moved = (m - shift) * factor
    shrink = tl.exp2(moved)
    total = tl.sum(s * shrink, 0)
    weighted = tl.sum((t + moved * s) * shrink, 0)
    column = tl.zeros([1], tl.int64) + tl.load(targets_ptr + row)
    inside = (column >= 0) & (column < width)
    v = _values(
        row_ptr, bias_ptr, column, inside, cap_scale, ACC, True, HAS_BIAS, ROUNDS, HAS_CAP, FLIPS
    )
    d = tl.where(inside, (v - shift) * factor, float("nan"))
    target = tl.sum(d, 0)
    if HAS_KEPT:
        total = tl.where(kept, total, 1.0)
        shift = tl.where(kept, shift, 0.0)
        target = tl.where(kept, target, 0.0)
    log_total = tl.log2(total)
    tl.store(logp_ptr + row, (target - log_total) * LN2)
    tl.store(entropy_ptr + row, (log_total - weighted / total) * LN2)
    tl.store(lse_ptr + row, shift * slope + log_total * LN2)
    tl.store(shift_ptr + row, shift)
    tl.store(sum_ptr + row, total)


@triton.jit
def _gradient(
    v, offsets, at, factor, shift, alpha, beta, gamma, cap_scale, ACC: tl.constexpr,
    HAS_LOGP: tl.constexpr, HAS_ENTROPY: tl.constexpr, HAS_CAP: tl.constexpr,
):  # fmt: skip
    """d loss / d s of a block; alpha, beta and gamma hold the scale already.

    `at` is the target's place in the block: comparing it with the constant offsets keeps the
    64-bit column arithmetic, two instructions a logit, out of the loop.
    """
    d = (v - shift) * factor
    weight = alpha
    if HAS_ENTROPY:
        d = _lift(d)
        weight = tl.fma(d, tl.broadcast_to(beta, d.shape), tl.broadcast_to(alpha, d.shape))
    g = tl.exp2(d) * weight
    if HAS_LOGP:
        g = tl.where(offsets == at, g + gamma, g)
    if HAS_CAP:
        g *= (1.0 - v * v) * tl.full([1], cap_scale, ACC)
    return g


@triton.jit(
    do_not_specialize=[
        "targets_ptr", "scale_ptr", "index_ptr", "g_logp_ptr", "g_entropy_ptr", "g_lse_ptr",
        "entropy_ptr", "shift_ptr", "sum_ptr",
    ],
    launch_metadata=_gradient_work,
)  # fmt: skip
def row_gradient_kernel(
    logits_ptr, stride_row, out_ptr, stride_out, bias_ptr, targets_ptr, scale_ptr, index_ptr,
    g_logp_ptr, g_entropy_ptr, g_lse_ptr, entropy_ptr, shift_ptr, sum_ptr,
    V, scale: tl.float64, cap_scale: tl.float64,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_INDEX: tl.constexpr,
    HAS_LOGP: tl.constexpr, HAS_ENTROPY: tl.constexpr, HAS_LSE: tl.constexpr,
    ROUNDS: tl.constexpr, HAS_CAP: tl.constexpr, FLIPS: tl.constexpr, NARROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out (C, V) = d loss / d raw logits. Reads a row once and writes it once.

    `out_ptr` may be the logits themselves, or (NARROWS) their memory seen as a type of half the
    width, every row in the first half of its own bytes. With an index, program i reads row
    index[i] and writes row i of other memory.
    """
    ACC: tl.constexpr = sum_ptr.dtype.element_ty
    out_row = tl.program_id(0).to(tl.int64)
    row = out_row
    if HAS_INDEX:
        row = tl.load(index_ptr + out_row)
    row_ptr = logits_ptr + row * stride_row
    to_ptr = out_ptr + out_row * stride_out

    total = tl.full([1], tl.load(sum_ptr + row), ACC)
    shift = tl.full([1], tl.load(shift_ptr + row), ACC)
    zero = tl.zeros([1], ACC)
    if HAS_SCALE:
        slope = tl.full([1], tl.load(scale_ptr + row), ACC)
    else:
        slope = tl.full([1], scale, ACC)
    factor = slope * LOG2E
    if FLIPS:
        factor = -factor
    alpha = zero
    beta = zero
    gamma = zero
    live = zero != 0
    if HAS_LOGP:
        gamma = zero + tl.load(g_logp_ptr + row)
        alpha -= gamma
        live |= gamma != 0
    if HAS_LSE:
        g_lse = zero + tl.load(g_lse_ptr + row)
        alpha += g_lse
        live |= g_lse != 0
    if HAS_ENTROPY:
        beta = zero - tl.load(g_entropy_ptr + row)
        alpha += beta * (tl.load(entropy_ptr + row) - tl.log2(total) * LN2)
        live |= beta != 0
    alpha = alpha * slope / total
    beta = beta * slope * LN2 / total
    gamma = gamma * slope
    column = (tl.zeros([1], tl.int64) + tl.load(targets_ptr + row)).to(tl.int32)

    offsets = tl.arange(0, BLOCK)
    is_live = tl.max(live.to(tl.int32), 0) != 0
    width = tl.where(is_live, V, 0)
    whole = width // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        columns = start + offsets
        v = _values(
            row_ptr, bias_ptr, columns, None, cap_scale, ACC, False,
            HAS_BIAS, ROUNDS, HAS_CAP, FLIPS,
        )  # fmt: skip
        if NARROWS:
            # block b is written over the bytes of blocks b/2 and (b+1)/2: all warps must have read
            # this block, and so every one before it
            tl.debug_barrier()
        g = _gradient(
            v, offsets, column - start, factor, shift, alpha, beta, gamma, cap_scale, ACC,
            HAS_LOGP, HAS_ENTROPY, HAS_CAP,
        )  # fmt: skip
        tl.store(to_ptr + columns, g.to(out_ptr.dtype.element_ty))
    if whole < width:
        columns = whole + offsets
        mask = columns < V
        v = _values(
            row_ptr, bias_ptr, columns, mask, cap_scale, ACC, True,
            HAS_BIAS, ROUNDS, HAS_CAP, FLIPS,
        )  # fmt: skip
        # a column behind the last: any number that 2^d stays finite for
        v = tl.where(mask, v, shift)
        if NARROWS:
            tl.debug_barrier()
        g = _gradient(
            v, offsets, column - whole, factor, shift, alpha, beta, gamma, cap_scale, ACC,
            HAS_LOGP, HAS_ENTROPY, HAS_CAP,
        )  # fmt: skip
        tl.store(to_ptr + columns, g.to(out_ptr.dtype.element_ty), mask=mask)
    if width == 0:
        nothing = tl.zeros([BLOCK], out_ptr.dtype.element_ty)
        for start in range(0, V, BLOCK):
            columns = start + offsets
            tl.store(to_ptr + columns, nothing, mask=columns < V)
