"""`row_pass` of csrc/cuda/row_kernels.h in numpy, line by line: which thread of which block of the
cluster holds which logits, in what order it folds them, and every exchange between lanes, warps and
blocks. fp32 logits without extras; the reduction tree is the chip's, so its rounding is too.

Shapes: `K blocks of a cluster . T threads of a block . V vocab . 4 items of a vector`.
"""

from dataclasses import dataclass

import numpy as np

F = np.float32
ITEMS, TILE, WARP = 4, 4, 32
LOG2E, LN2, FLOOR = F(1.4426950408889634), F(0.6931471805599453), F(-1e30)
LOWEST = F(-1e4)


@dataclass(frozen=True)
class Row:
    """What a cluster leaves behind."""

    logp: np.float32
    entropy: np.float32
    lse: np.float32
    gradient: np.ndarray
    """(V,)"""
    sums: np.ndarray
    """(K, 3) maximum, sum E and sum d E as each block has merged them"""


def row_pass(
    logits: np.ndarray, target: int, g: tuple[float, float, float], scale: float, K: int, T: int
) -> Row:
    """Statistics of one row (V,), and d loss / d logits for g = d loss / d (logp, entropy, lse)."""
    V = logits.shape[0]
    vectors = -(-V // ITEMS)
    largest = -(-vectors // K)
    factor = F(scale) * LOG2E
    # shared memory: the share of each block, zeros behind the row
    padded = np.zeros(largest * K * ITEMS, F)
    padded[:V] = logits
    share = padded.reshape(K, largest, ITEMS)
    exchange = np.empty((K, 3), F)
    for rank in range(K):
        first = min(rank * largest, vectors)
        count = min(largest, vectors - first)
        lanes = np.stack(
            [fold_thread(share[rank], first, count, t, T, V, factor) for t in range(T)]
        )
        exchange[rank] = merge_block(lanes, factor)
    # after the cluster barrier every block reads all sums over distributed shared memory
    sums = np.empty((K, 3), F)
    for rank in range(K):
        lanes = np.tile(np.array([FLOOR, 0, 0], F), (WARP, 1))
        lanes[:K] = exchange
        sums[rank] = merge_warp(lanes, factor)[0]
    gradient = np.empty(largest * K * ITEMS, F).reshape(K, largest, ITEMS)
    for rank in range(K):
        m, s, t = sums[rank]
        log_total = np.log2(s)
        logp = ((logits[target] - m) * factor - log_total) * LN2
        entropy = (log_total - t / s) * LN2
        lse = m * (factor * LN2) + log_total * LN2
        g_logp, g_entropy, g_lse = map(F, g)
        alpha = g_lse - g_logp - g_entropy * (entropy - log_total * LN2)
        alpha, beta = alpha * F(scale) / s, -g_entropy * F(scale) * LN2 / s
        d = np.maximum((share[rank] - m) * factor, LOWEST)
        gradient[rank] = np.exp2(d) * (d * beta + alpha)
    gradient = gradient.reshape(-1)[:V]
    gradient[target] += F(g[0]) * F(scale)
    return Row(logp, entropy, lse, gradient, sums)


def fold_thread(
    share: np.ndarray, first: int, count: int, thread: int, T: int, V: int, factor: np.float32
) -> np.ndarray:
    """The sums (3,) of one thread: vectors thread, thread + T, ... of its block's share."""
    sums = np.array([FLOOR, 0, 0], F)
    tiles = -(-count // (TILE * T))
    for tile in range(tiles):
        i = tile * TILE * T + thread
        last = i + (TILE - 1) * T
        if (first + last + 1) * ITEMS <= V and last < count:
            sums = fold(sums, share[i : last + 1 : T].reshape(-1), factor)
            continue
        for k in range(i, min(count, i + TILE * T), T):
            column = (first + k) * ITEMS + np.arange(ITEMS)
            sums = fold(sums, np.where(column < V, share[k], FLOOR), factor)
    return sums


def fold(sums: np.ndarray, v: np.ndarray, factor: np.float32) -> np.ndarray:
    """Take in some logits, one after the other."""
    m = max(sums[0], v.max())
    moved = (sums[0] - m) * factor
    shrink = np.exp2(moved)
    s, t = sums[1] * shrink, (sums[2] + moved * sums[1]) * shrink
    for x in v:
        d = np.maximum((x - m) * factor, LOWEST)
        e = np.exp2(d)
        s, t = s + e, F(np.float64(d) * np.float64(e) + np.float64(t))
    return np.array([m, s, t], F)


def merge(a: np.ndarray, b: np.ndarray, factor: np.float32) -> np.ndarray:
    """Sums (..., 3) of two sets."""
    m = np.maximum(a[..., 0], b[..., 0])
    moved_a, moved_b = (a[..., 0] - m) * factor, (b[..., 0] - m) * factor
    shrink_a, shrink_b = np.exp2(moved_a), np.exp2(moved_b)
    s = a[..., 1] * shrink_a + b[..., 1] * shrink_b
    t = (a[..., 2] + moved_a * a[..., 1]) * shrink_a + (b[..., 2] + moved_b * b[..., 1]) * shrink_b
    return np.stack((m, s, t), -1)


def merge_warp(lanes: np.ndarray, factor: np.float32) -> np.ndarray:
    """Butterfly over the lanes (32, 3)."""
    mask = WARP // 2
    while mask:
        lanes = merge(lanes, lanes[np.arange(WARP) ^ mask], factor)
        mask //= 2
    return lanes


def merge_block(threads: np.ndarray, factor: np.float32) -> np.ndarray:
    """The block's sums (3,) from its threads' (T, 3): warps first, then warp 0 over the warps."""
    leaders = [merge_warp(w, factor)[0] for w in threads.reshape(-1, WARP, 3)]
    lanes = np.tile(np.array([FLOOR, 0, 0], F), (WARP, 1))
    lanes[: len(leaders)] = leaders
    return merge_warp(lanes, factor)[0]
