"""What the kernels share: tiles of a chunk, states, and decays.

Shapes: `CHUNK tokens of a chunk . K key head dim . V value head dim`. A chunk at the end of a row
may be shorter: slots past its end read zeros, and the last token's decay, so that they change
nothing. Row numbers are 64-bit wherever they are multiplied.
"""

import triton
import triton.language as tl


@triton.jit
def load_chunk(first_ptr, length_ptr, SLOTS: tl.constexpr):
    """Of chunk program_id(0): the first token, how many there are, and for its first SLOTS slots
    the token in each and whether there is one, (SLOTS,)."""
    chunk = tl.program_id(0).to(tl.int64)
    first = tl.load(first_ptr + chunk)
    length = tl.load(length_ptr + chunk)
    slots = tl.arange(0, SLOTS)
    return first, length, first + slots, slots < length


@triton.jit
def this_key_head(G):
    """Key head program_id(1), of how many, and how many value heads there are."""
    H = tl.num_programs(1)
    return tl.program_id(1).to(tl.int64), H, H * G


@triton.jit
def this_value_head(G):
    """Value head program_id(1), of how many, its key head, and how many of those there are."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    return head.to(tl.int64), heads, (head // G).to(tl.int64), heads // G


@triton.jit
def load_tile(ptr, rows, stride_row, columns, is_row, width):
    """(CHUNK, columns) of a matrix whose columns are adjacent; 0 outside."""
    at = ptr + rows[:, None] * stride_row + columns[None, :]
    return tl.load(at, mask=is_row[:, None] & (columns < width)[None, :], other=0.0)


@triton.jit
def store_tile(ptr, rows, stride_row, columns, is_row, width, tile):
    """The counterpart of `load_tile`, cast to the pointer's type."""
    at = ptr + rows[:, None] * stride_row + columns[None, :]
    mask = is_row[:, None] & (columns < width)[None, :]
    tl.store(at, tile.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_state(ptr, at, K, V, keys, values):
    """(BLOCK_K, BLOCK_V) of state number `at`; 0 outside."""
    offsets = keys[:, None] * V + values[None, :]
    mask = (keys < K)[:, None] & (values < V)[None, :]
    return tl.load(ptr + at * K * V + offsets, mask=mask, other=0.0)


@triton.jit
def store_state(ptr, at, K, V, keys, values, state):
    """The counterpart of `load_state`, cast to the pointer's type."""
    offsets = keys[:, None] * V + values[None, :]
    mask = (keys < K)[:, None] & (values < V)[None, :]
    tl.store(ptr + at * K * V + offsets, state.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """a b, summed in fp32; b in a's dtype."""
    return tl.dot(a, b.to(a.dtype), input_precision=PRECISION)


@triton.jit
def load_decay(ptr, first, length, num_heads, head, CHUNK: tl.constexpr):
    """c, the running log decay of a chunk: (CHUNK,) and its last value, in two fp32 parts each.

    Sums over a chunk may reach thousands where single steps matter, so c is stored in fp64 and
    every difference is taken of both parts.
    """
    token = first + tl.minimum(tl.arange(0, CHUNK), length - 1)
    c = tl.load(ptr + token * num_heads + head)
    last = tl.load(ptr + (first + length - 1) * num_heads + head)
    high = c.to(tl.float32)
    last_high = last.to(tl.float32)
    return high, (c - high).to(tl.float32), last_high, (last - last_high).to(tl.float32)


@triton.jit
def decay_between(high_i, low_i, high_j, low_j, below):
    """e^{c_i - c_j} where `below`, 0 elsewhere: (len c_i, len c_j) fp32."""
    difference = (high_i[:, None] - high_j[None, :]) + (low_i[:, None] - low_j[None, :])
    # masked before the exponential: above the diagonal it may overflow
    return tl.exp(tl.where(below, difference, float("-inf")))
