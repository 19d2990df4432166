"""Varlen causal attention, registered with transformers under one name.

Shapes: T packed tokens, B batch, H query heads, Hkv key/value heads, L tokens of a row, d head dim.

`packed_attention` is what transformers calls in every attention layer whose model was set to
`ATTENTION_NAME`. With a `packed_layout` (see `polaris_fast.model.packed`) each row attends only to
itself; without one (generation with a KV cache, left-padded batches) it is transformers' own sdpa.
Layers that cap their scores or have attention sinks are refused: they would lose them in silence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polaris_fast.model.kernel_choice import chosen
from polaris_fast.model.layout import PackedLayout
from polaris_fast.model.regroup import collect, spread
from polaris_fast.types import UserError

ATTENTION_NAME = "polaris_varlen"

AttentionBackend = Literal["flash_attn", "torch_varlen", "grouped_sdpa"]


@cache
def register_attention() -> str:
    """Make `ATTENTION_NAME` known to transformers, with sdpa's masks; returns the name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    return ATTENTION_NAME


def attention_backend(device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """Which kernel packed rows run on: the run's choice, else the first that is installed."""
    if (name := chosen("attention")) is not None and device.type == "cuda":
        return name  # type: ignore[return-value]
    return attention_backends(device, dtype)[0]


def attention_backends(device: torch.device, dtype: torch.dtype) -> tuple[AttentionBackend, ...]:
    """Those there are, in order of preference; FlashAttention needs CUDA and 16-bit floats."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return ("grouped_sdpa",)
    flash: tuple[AttentionBackend, ...] = ("flash_attn",) if find_spec("flash_attn") else ()
    return (*flash, "torch_varlen", "grouped_sdpa")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_layout: PackedLayout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling) v inside each row; the signature is transformers'.

    Args:
        module: the attention layer, used only by transformers' own sdpa.
        query: (B, H, T, d), B = 1 for packed rows.
        key, value: (B, Hkv, T, d)
        attention_mask: read only without a layout, where it is what `sdpa_mask` made.
        packed_layout: boundaries of the T tokens.
        sliding_window: tokens a token may see, itself included; None for all before it.
        softcap: cap of the scores; only None is served.
        s_aux: attention sinks; only None is served.
    Returns:
        (B, T, H, d) and None for the weights.
    Errors: UserError for a layer that caps its scores or has sinks.
    """
    if softcap is not None or s_aux is not None:
        what = "has attention sinks" if softcap is None else f"caps its scores at {softcap}"
        raise UserError(
            f"model_name_or_path: {type(module).__name__} {what}, which the packed attention "
            "leaves out; give a causal LM of the Qwen3.5, Qwen3 or Llama family"
        )
    if packed_layout is None and query.shape[2] == 1 and not torch.is_grad_enabled():
        return _one_token_attention(query, key, value, attention_mask, scaling), None
    if packed_layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            **kwargs,
        )
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    out = varlen_attention(
        q, k, v, packed_layout, scale=scaling, dropout=dropout, window=sliding_window
    )
    return out.unsqueeze(0), None


def _one_token_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """One query token a row against its cache; transformers would copy the cache for each group.

    The query heads of a key head stand below each other as if they were tokens: they see the same.

    Args:
        query: (B, H, 1, d)
        key, value: (B, Hkv, L, d)
        mask: (B, 1, 1, L) bool or added to the scores; None: all are seen.
        scale: factor on the scores, 1 / sqrt(d) if None.
    Returns:
        (B, 1, H, d)
    """
    rows, num_heads, _, _ = query.shape
    grouped = query.view(rows, key.shape[1], num_heads // key.shape[1], -1)
    out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scale)
    return out.reshape(rows, 1, num_heads, -1)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: PackedLayout,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    backend: AttentionBackend | None = None,
) -> Tensor:
    """Causal attention inside each row.

    Args:
        q: (T, H, d)
        k, v: (T, Hkv, d), H a multiple of Hkv.
        scale: factor on the scores, 1 / sqrt(d) if None.
        window: tokens a token may see, itself included; None for all before it.
        backend: None for `attention_backend`'s.
    Returns:
        (T, H, d)
    """
    if window is not None and window >= layout.max_seqlen:
        window = None
    backend = backend or attention_backend(q.device, q.dtype)
    if backend == "grouped_sdpa":
        return _grouped_sdpa(q, k, v, layout, scale, dropout, window)
    lengths = (layout.cu_seqlens, layout.cu_seqlens, layout.max_seqlen, layout.max_seqlen)
    window_size = (-1 if window is None else window - 1, 0)  # tokens seen before and after
    if backend == "flash_attn":
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(
            q,
            k,
            v,
            *lengths,
            dropout_p=dropout,
            softmax_scale=scale,
            causal=True,
            window_size=window_size,
        )
    if dropout:
        raise ValueError(
            f"varlen_attention: torch_varlen has no dropout, got {dropout}; "
            "install flash-attn or set the model's attention_dropout to 0"
        )
    out = _torch_varlen()(q, k, v, *lengths, scale=scale, window_size=window_size)
    assert isinstance(out, Tensor)  # a tuple only when return_aux asks for one
    return out


@cache
def _torch_varlen() -> Callable[..., Any]:
    """torch's own varlen attention, for fewer key heads than query heads.

    torch 2.11 takes such heads unasked and has no word for it; later versions want to be told.
    """
    from torch.nn.attention.varlen import varlen_attn

    told = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return partial(varlen_attn, enable_gqa=True) if told else varlen_attn


def _grouped_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: PackedLayout,
    scale: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """Rows of similar length share one causal sdpa call.

    The tail of a padded row is exact by causality: real tokens never see what comes after them,
    and what the tail computes is dropped.
    """
    plan = layout.attention
    heads, head_dim = q.shape[1:]
    repeats = heads // k.shape[1]
    slots = [spread(x.reshape(-1, head_dim), plan.regroup(x.shape[1])) for x in (q, k, v)]
    sizes = [rows * length for rows, length in plan.groups]
    split_q, split_k, split_v = (
        x.split([size * h for size in sizes])
        for x, h in zip(slots, (heads, k.shape[1], v.shape[1]), strict=True)
    )
    outs = []
    for (rows, length), gq, gk, gv in zip(plan.groups, split_q, split_k, split_v, strict=True):
        gq, gk, gv = (x.view(rows, -1, length, head_dim) for x in (gq, gk, gv))
        if repeats > 1:
            gk, gv = (x.repeat_interleave(repeats, dim=1) for x in (gk, gv))
        mask = None if window is None else _window_mask(length, window, q.device)
        out = F.scaled_dot_product_attention(
            gq, gk, gv, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale
        )
        outs.append(out.reshape(-1, head_dim))
    return collect(torch.cat(outs), plan.regroup(heads)).view_as(q)


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """(L, L) bool, True where token i may see token j: 0 <= i - j < window."""
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return seen.triu(1 - window)
