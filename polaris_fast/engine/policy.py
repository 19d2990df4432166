"""The policy's forward: packed rows in, loss or log-probs out, through one module call.

Engines that shard the weights gather them by hooks on module calls, the head's among them.

T packed tokens · N targets · D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polaris_kernels import GRPOLossOutput, LossRows, LossSpec

from ..config import Config
from ..model.lora import Adapters
from ..model.memory import kept_activations
from ..model.packed import packed_hidden_states
from ..packing import PackedBatch


class Policy(nn.Module):
    """A causal LM whose forward is the loss of a packed micro-batch."""

    def __init__(self, model: Any, config: Config, spec: LossSpec) -> None:
        super().__init__()
        self.model, self.config, self.spec = model, config, spec

    def forward(self, batch: PackedBatch, rows: LossRows) -> GRPOLossOutput:
        """The loss of the batch's targets, its gradients made on the way."""
        with kept_activations(self.config, batch.input_ids.device):
            hidden = packed_hidden_states(self.model, batch)
        hidden = hidden[batch.logit_positions]  # (N, D)
        out: GRPOLossOutput = self.model.lm_head(
            hidden,
            targets=batch.targets,
            rows=rows,
            spec=self.spec,
            temperature=self.config.temperature,
            logits_dtype=self.config.logits_dtype,
        )
        return out


@torch.no_grad()
def reference_logps(
    model: Any,
    reference: Any | None,
    adapters: Adapters | None,
    batch: PackedBatch,
    config: Config,
) -> torch.Tensor:
    """(N,) fp32 log-probs of the batch's targets under the frozen reference.

    With adapters that is the model without them, else a model of its own.
    """
    off = nullcontext() if adapters is None else adapters.off()
    with off:
        if adapters is not None:
            reference = model
        assert reference is not None
        hidden = packed_hidden_states(reference, batch)[batch.logit_positions]
        logps: torch.Tensor = reference.lm_head.logps(
            hidden,
            targets=batch.targets,
            temperature=config.temperature,
            logits_dtype=config.logits_dtype,
        ).logps
        return logps


def save_model(
    model: Any, adapters: Adapters | None, state: Mapping[str, torch.Tensor], folder: Path
) -> None:
    """Write a folder for `from_pretrained`: merged weights, and the adapters beside them.

    Args:
        state: whole tensors of the model's state dict.
    """
    if adapters is None:
        model.save_pretrained(folder, state_dict=dict(state))
        return
    model.save_pretrained(folder, state_dict=adapters.merged(state))
    adapters.save(folder, state)
