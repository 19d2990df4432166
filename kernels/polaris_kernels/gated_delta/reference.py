"""The gated delta rule in plain torch: what it is, and the chunk equations that the kernels follow.

Shapes: T packed tokens, H key heads, G value heads per key head, K key head dim, V value head dim,
C chunk length. Everything is computed in v's dtype; float64 makes these the oracles of the tests.

The rule (Gated DeltaNet, arXiv 2412.06464, eq. 10), from S = 0 at the start of each row:

    S_t = e^{g_t} (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T        o_t = S_t^T q_t

with k scaled to length 1 and q to length 1 / sqrt(K). Over a chunk (the WY form, arXiv 2406.06484),
with c the running sum of g in it, S the state before it, D_ij = e^{c_i - c_j} for j <= i:

    A = I + strictly lower part of beta_i (k_i . k_j) D_ij
    U = A^-1 beta (v - e^c k S)            what each token writes
    O = e^c q S + (q k^T * D) U
    S' = e^{c_C} S + k^T e^{c_C - c} U

And back, with P = q k^T * D on and below the diagonal, from d O and d S':

    d U = P^T d O + e^{c_C - c} k d S'     R = A^-T d U     d v = beta R
    d S = e^{c_C} d S' + (e^c q)^T d O - (e^c k)^T d v
    d P = d O U^T     d A = -R U^T         strictly lower, d P with its diagonal
    M = beta_i d A * D
    d q = (d P * D) k + e^c d O S^T
    d k = (d P * D)^T q + (M + M^T) k + e^{c_C - c} U d S'^T - e^c d v S^T
    d beta_i = R_i . (v_i - e^{c_i} S^T k_i) + sum_j d A_ij (k_i . k_j) D_ij

Each e^{c_i - c_j} adds its product with its own gradient to d c_i and takes it from d c_j; d g is
the sum of d c from there to the end of the chunk. These sums collapse to d o . o - d v . v, which
loses all digits where the decay is strong: terms without any decay in them cancel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NORM_EPS = 1e-6


def recurrent_reference(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, lengths: Sequence[int]
) -> Tensor:
    """o (T, H * G, V), one token at a time; differentiable.

    Args:
        q, k: (T, H, K), normalised here.
        v: (T, H * G, V); value heads h * G .. h * G + G - 1 read key head h.
        g, beta: (T, H * G) log decay, write strength.
        lengths: tokens of each row, T in all.
    """
    q, k = _unit_heads(q, k, v)
    out = []
    for row in torch.arange(len(v), device=v.device).split(list(lengths)):
        state = v.new_zeros(v.shape[1], k.shape[2], v.shape[2])
        for t in row.tolist():
            decayed = state * g[t].to(v).exp()[:, None, None]
            seen = torch.einsum("hkv,hk->hv", decayed, k[t])
            write = beta[t].to(v)[:, None] * (v[t] - seen)
            state = decayed + torch.einsum("hk,hv->hkv", k[t], write)
            out.append(torch.einsum("hkv,hk->hv", state, q[t]))
    return torch.stack(out)


def chunk_forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One chunk by the equations above: o, u (heads, C, V) and the next state (heads, K, V).

    Args:
        q, k: (heads, C, K), scaled already.
        v: (heads, C, V)
        g, beta: (heads, C)
        state: (heads, K, V)
    """
    c, decay, system = _inside(k, g, beta)
    start = c.exp()[..., None]
    right = beta[..., None] * (v - start * (k @ state))
    u = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    out = start * (q @ state) + ((q @ k.mT) * decay) @ u
    end = (c[..., -1:] - c).exp()[..., None]
    return out, u, c[..., -1:, None].exp() * state + k.mT @ (end * u)


def chunk_backward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor,
    state: Tensor, u: Tensor, grad_out: Tensor, grad_next: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """d q, d k, d v, d g, d beta and d state of one chunk; arguments as `chunk_forward`'s."""
    c, decay, system = _inside(k, g, beta)
    start, end = c.exp()[..., None], (c[..., -1:] - c).exp()[..., None]
    kk, p = k @ k.mT, (q @ k.mT) * decay
    grad_u = p.mT @ grad_out + end * (k @ grad_next)
    r = torch.linalg.solve_triangular(system.mT, grad_u, upper=True, unitriangular=True)
    grad_v = beta[..., None] * r
    grad_p, grad_a = (grad_out @ u.mT).tril(), -(r @ u.mT).tril(-1)
    m = grad_a * decay * beta[..., None]
    from_q, from_k = start * (grad_out @ state.mT), start * (r @ state.mT)
    from_next = end * (u @ grad_next.mT)
    grad_q = (grad_p * decay) @ k + from_q
    grad_k = (grad_p * decay).mT @ q + (m + m.mT) @ k + from_next - beta[..., None] * from_k
    grad_beta = (r * v).sum(-1) - (from_k * k).sum(-1) + (grad_a * kk * decay).sum(-1)
    pairs = m * kk + (grad_p * p).tril(-1)
    carried = (from_next * k).sum(-1)
    grad_c = pairs.sum(-1) - pairs.sum(-2) - carried
    grad_c = grad_c + (from_q * q).sum(-1) - beta * (from_k * k).sum(-1)
    whole = c[..., -1].exp() * (state * grad_next).sum((-1, -2)) + carried.sum(-1)
    grad_g = grad_c.flip(-1).cumsum(-1).flip(-1) + whole[..., None]
    grad_state = c[..., -1:, None].exp() * grad_next
    grad_state = grad_state + (start * q).mT @ grad_out - (start * k).mT @ grad_v
    return grad_q, grad_k, grad_v, grad_g, grad_beta, grad_state


def _inside(k: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c (heads, C), D and A (heads, C, C) of one chunk."""
    c = g.cumsum(-1)
    decay = (c[..., :, None] - c[..., None, :]).tril().exp().tril()
    system = (beta[..., None] * (k @ k.mT) * decay).tril(-1)
    return c, decay, system + torch.eye(k.shape[-2], dtype=k.dtype, device=k.device)


def _unit_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """q and k in v's dtype, scaled, and one for each value head."""
    group = v.shape[1] // k.shape[1]
    scale = q.shape[-1] ** -0.5
    q, k = (x.to(v) * (x.to(v).square().sum(-1, keepdim=True) + NORM_EPS).rsqrt() for x in (q, k))
    return (scale * q).repeat_interleave(group, 1), k.repeat_interleave(group, 1)
