"""Run packed rows through a transformers model's own body, each row exactly as if it were alone.

Shapes: T packed tokens, D hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polaris_fast.model.attention import ATTENTION_NAME, register_attention
from polaris_fast.model.delta_net import hook_delta_net

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from polaris_fast.packing import PackedBatch


def install_packing(
    model: PreTrainedModel, *, attn_implementation: str | None = None
) -> PreTrainedModel:
    """Let the model's layers see row boundaries; returns the same model.

    Args:
        model: a transformers causal LM; parameters and their names do not change.
        attn_implementation: None for the project's varlen attention, or a name transformers knows
            ("flash_attention_2" keeps rows apart too, "sdpa" and "eager" build a (T, T) mask).
    """
    model.set_attn_implementation(attn_implementation or register_attention())
    hook_delta_net(model)
    return model


def packed_hidden_states(
    model: Any, batch: PackedBatch, *, inputs_embeds: Tensor | None = None
) -> Tensor:
    """Hidden states after the final norm, without logits.

    Args:
        model: a causal LM that went through `install_packing`, or a wrapper that forwards
            `get_decoder`.
        batch: packed rows on the model's device.
        inputs_embeds: (T, D) used in place of the batch's token embeddings.
    Returns:
        (T, D) in the model's dtype.
    """
    hidden: Tensor = packed_outputs(model, batch, inputs_embeds=inputs_embeds).last_hidden_state
    return hidden[0]


def packed_outputs(model: Any, batch: PackedBatch, *, inputs_embeds: Tensor | None = None) -> Any:
    """All that the body returns for packed rows; arguments of `packed_hidden_states`."""
    body = model.get_decoder()
    layout = batch.layout
    tokens: dict[str, Tensor] = (
        {"input_ids": batch.input_ids[None]}
        if inputs_embeds is None
        else {"inputs_embeds": inputs_embeds[None]}
    )
    return body(
        **tokens,
        position_ids=layout.position_ids[None],
        attention_mask=_no_mask(body, layout.device),
        use_cache=False,
        packed_layout=layout,
        # transformers' names, for its own flash attention and for layers we do not hook
        cu_seq_lens_q=layout.cu_seqlens,
        cu_seq_lens_k=layout.cu_seqlens,
        max_length_q=layout.max_seqlen,
        max_length_k=layout.max_seqlen,
        seq_idx=layout.row_of_token[None].int(),
    )


def _no_mask(body: Any, device: torch.device) -> Tensor | None:
    """A 4-D mask passes through transformers' mask code as it is, and our attention reads none.

    Without it transformers would find the rows in position_ids and build a (T, T) mask for nobody.
    """
    if body.config._attn_implementation != ATTENTION_NAME:
        return None
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
