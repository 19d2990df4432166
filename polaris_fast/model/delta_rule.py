"""The gated delta rule over packed rows in plain torch (Gated DeltaNet, arXiv 2412.06464).

Shapes: T packed tokens, R rows, N chunks, C chunk length, H key heads, G value heads per key head,
K key head dim, V value head dim. The state S of a row is (H * G, K, V) and starts at zero:

    S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
    o_t = S_t^T q_t / sqrt(K)                     with q_t and k_t scaled to length 1

Inside a chunk, with c_i the running sum of g, S the state before the chunk, and u_i what token i
writes to the state (u_i = beta_i times the part of v_i that the decayed state does not predict):

    u_i = beta_i (v_i - e^{c_i} S^T k_i - sum_{j<i} e^{c_i - c_j} (k_i . k_j) u_j)
    o_i = e^{c_i} S^T q_i + sum_{j<=i} e^{c_i - c_j} (q_i . k_j) u_j
    S'  = e^{c_C} S + sum_j e^{c_C - c_j} k_j u_j^T

The first line is a unit lower triangular system A u = beta (v - e^c S^T k). With A^-1 it becomes
u = new - read S, where new = A^-1 beta v and read = A^-1 beta e^c k. The inversions and products
inside chunks run for all chunks of all rows at once; only the state goes from chunk to chunk,
batched over the rows that have one left. Slots past the end of a row hold zeros, which leave the
state as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polaris_fast.model.layout import ChunkPlan, PackedLayout
from polaris_fast.model.regroup import collect, spread

NORM_EPS = 1e-6
# On one CPU core 32 takes .7 of the time of 64 at rows of 100 tokens (forward and backward).
CHUNK_SIZE = 32


def packed_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    layout: PackedLayout,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """o = gated delta rule of every row on its own, from a zero state.

    Args:
        q, k: (T, H, K) any floating dtype; normalised here.
        v: (T, H * G, V); value heads h * G .. h * G + G - 1 read key head h.
        g: (T, H * G) log of the decay, at most 0.
        beta: (T, H * G) write strength, 0 to 1.
        layout: boundaries of the T tokens.
        chunk_size: tokens solved as one triangular system.
    Returns:
        (T, H * G, V) in v's dtype, computed in fp32 (fp64 if v is). Does not return final states.
    """
    plan = layout.chunks(chunk_size)
    key_heads, value_heads = k.shape[1], v.shape[1]
    heads = (key_heads, value_heads // key_heads)
    dtype = torch.promote_types(v.dtype, torch.float32)
    q = _chunked(unit_norm(q.to(dtype)) * q.shape[-1] ** -0.5, plan).unsqueeze(2)  # (N, H, 1, C, K)
    k = _chunked(unit_norm(k.to(dtype)), plan).unsqueeze(2)
    values = _chunked(v.to(dtype), plan).unflatten(1, heads)  # (N, H, G, C, V)
    beta = _chunked(beta.to(dtype).unsqueeze(-1), plan).unflatten(1, heads)  # (N, H, G, C, 1)
    # Sums over a chunk reach hundreds where single steps matter: their differences need fp64.
    c = _chunked(g.double().unsqueeze(-1), plan).unflatten(1, heads).cumsum(-2)

    future = torch.ones(chunk_size, chunk_size, dtype=torch.bool, device=v.device).triu(1)
    decay = (c - c.mT).to(dtype).masked_fill(future, float("-inf")).exp()  # (N, H, G, C, C)
    since_start = c.to(dtype).exp()
    until_end = (c[..., -1:, :] - c).to(dtype).exp()

    inverse = _invert((k @ k.mT) * decay * beta) * beta.mT  # A^-1 diag(beta)
    new = inverse @ values  # (N, H, G, C, V)
    first = plan.active[0]  # chunks that start a row: their state is zero and is never read
    # The value heads of a key head stand below each other, so that k is not copied for each.
    weights = (inverse[first:] * since_start[first:].mT).flatten(2, 3)  # (N - first, H, G * C, C)
    read = (weights @ k[first:].squeeze(2)).unflatten(2, (-1, chunk_size))
    written, states = _scan(new, read, until_end * k, since_start[..., -1:, :], plan.active)

    out = ((q @ k.mT) * decay) @ written
    if first < plan.num_chunks:
        from_state = (since_start[first:] * q[first:]) @ states
        out = torch.cat((out[:first], out[first:] + from_state))
    out = collect(out.reshape(-1, v.shape[-1]), plan.regroup(value_heads))
    return out.view_as(v).to(v.dtype)


def gated_delta_step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> Tensor:
    """One token of every row: o = S'^T q / sqrt(K), with S' written over `state`. No gradient.

    S' is never read back: o = (e^g S^T q + (q . k) u) / sqrt(K), so one product with the old state
    serves both the prediction for k and the output.

    Args:
        q, k: (R, H, K) any floating dtype; normalised here.
        v: (R, H * G, V)
        g, beta: (R, H * G)
        state: (R, H * G, K, V) fp32, changed in place.
    Returns:
        (R, H * G, V) in v's dtype.
    """
    dtype = state.dtype
    group = v.shape[1] // k.shape[1]
    q = unit_norm(q.to(dtype)) * q.shape[-1] ** -0.5
    k = unit_norm(k.to(dtype))
    q, k = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (q, k))
    decay = g.to(dtype).exp().unsqueeze(-1)  # (R, H * G, 1)
    seen_k, seen_q = (torch.stack((k, q), dim=2) @ state).unbind(2)  # (R, H * G, V) each
    u = (v.to(dtype) - decay * seen_k) * beta.to(dtype).unsqueeze(-1)
    state.mul_(decay.unsqueeze(-1)).addcmul_(k.unsqueeze(-1), u.unsqueeze(-2))
    return (decay * seen_q + (q * k).sum(-1, keepdim=True) * u).to(v.dtype)


def unit_norm(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, with the epsilon the published weights were trained with."""
    return x * (x.square().sum(-1, keepdim=True) + NORM_EPS).rsqrt()


def _chunked(x: Tensor, plan: ChunkPlan) -> Tensor:
    """(T, H, d) -> (N, H, C, d), zero past the end of each row."""
    heads, width = x.shape[1:]
    slots = spread(x.reshape(-1, width), plan.regroup(heads))
    return slots.view(plan.num_chunks, heads, plan.size, width)


def _invert(system: Tensor) -> Tensor:
    """A^-1 with A the unit lower triangular part of system (..., C, C)."""
    eye = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device)
    eye = eye.expand_as(system)
    return torch.linalg.solve_triangular(system, eye, upper=False, unitriangular=True)


def _scan(
    new: Tensor, read: Tensor, keys: Tensor, decay: Tensor, active: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Carry the state from chunk to chunk: u = new - read S, S' = decay S + keys^T u.

    Args:
        new: (N, H, G, C, V) writes of a chunk that starts from a zero state.
        read: (N - active[0], H, G, C, K) what later chunks take back of them for each state.
        keys: (N, H, G, C, K) keys, decayed to the end of their chunk.
        decay: (N, H, G, 1, 1) decay over the whole chunk.
        active: chunks at each step.
    Returns:
        u (N, H, G, C, V) and the state before every chunk but the first ones
        (N - active[0], H, G, K, V).
    """
    # One split each: its backward is one concatenation, where slices would each pad with zeros.
    new_steps, key_steps, decay_steps = (x.split(active) for x in (new, keys, decay))
    read_steps = (new[:0], *read.split(active[1:]))
    written, states = (
        [new_steps[0]],
        [new.new_zeros(0, *new.shape[1:3], keys.shape[-1], new.shape[-1])],
    )
    state = None
    for step in range(1, len(active)):
        rows = active[step]
        carried = key_steps[step - 1][:rows].mT @ written[-1][:rows]
        state = carried if state is None else decay_steps[step - 1][:rows] * state[:rows] + carried
        states.append(state)
        written.append(new_steps[step] - read_steps[step] @ state)
    return torch.cat(written), torch.cat(states)
