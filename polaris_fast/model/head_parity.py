"""The start-up probe of the head: its log-probs must be those of the model's own logits.

N tokens, D hidden, V vocab. The model's own forward gets final hidden states in place of its
body's, so that everything it does to its logits shows, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polaris_fast.model.logits import logit_options
from polaris_fast.model.packed import packed_outputs
from polaris_fast.packing import pack_rows
from polaris_fast.types import UserError

_NUM_TOKENS = 8
# Raw logits are made this large: fresh weights give some that no factor or cap would change much.
_LARGEST_LOGIT = 30.0
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class _Row:
    prompt_ids: list[int]
    completion_ids: list[int]


@torch.no_grad()
def check_head(model: Any, *, seed: int = 0) -> float:
    """Compare the fused head's log-probs with those of `model(...).logits`.

    Args:
        model: a causal LM in eval mode with packing and fused head installed.
    Returns:
        the largest difference, as a share of the largest logit.
    Errors: UserError when it is more than rounding.
    """
    head = model.get_output_embeddings()
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(_NUM_TOKENS, head.in_features, generator=generator).to(head.weight)
    hidden = hidden * (_LARGEST_LOGIT / head(hidden).abs().max())
    targets = torch.randint(head.out_features, (_NUM_TOKENS,), generator=generator)
    targets = targets.to(head.weight.device)
    logits = _own_logits(model, hidden, targets).float()
    theirs = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    ours = head.logps(hidden, targets=targets, **logit_options(model.config)).logps
    difference = float((ours - theirs).abs().max() / logits.abs().max())
    if not difference <= _TOLERANCE[head.weight.dtype]:
        raise UserError(
            f"model_name_or_path: the logits of {type(model).__name__} are more than its head's "
            f"weight gives: log-probs of the fused head differ by {difference:.3g} of the largest "
            "logit, so training would be on wrong ones; give a causal LM of the Qwen3.5, Qwen3 or "
            "Llama family"
        )
    return difference


def _own_logits(model: Any, hidden: Tensor, input_ids: Tensor) -> Tensor:
    """(N, V) as the model's own forward makes them of final hidden states (N, D)."""
    row = _Row(input_ids[:1].tolist(), [0])
    kind = type(packed_outputs(model, pack_rows([row], hidden.device)))
    with _body_gives(model.get_decoder(), kind(last_hidden_state=hidden[None])):
        logits: Tensor = model(input_ids=input_ids[None], use_cache=False).logits[0]
    return logits


@contextmanager
def _body_gives(body: Any, outputs: Any) -> Iterator[None]:
    """Inside the block the body computes nothing and returns these outputs."""
    before = body.__dict__.get("forward")
    body.forward = lambda *_, **__: outputs
    try:
        yield
    finally:
        if before is None:
            del body.forward
        else:
            body.forward = before
