"""The policy's forward: packed rows in, loss or log-probs out, through one module call.

Engines that shard the weights gather them by hooks on module calls, the head's among them.

T packed tokens · N targets · D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from polaris_kernels import GRPOLossOutput, LossRows, LossSpec

from ..config import Config
from ..model.packed import packed_hidden_states
from ..packing import PackedBatch


class Policy(nn.Module):
    """A causal LM whose forward is the loss of a packed micro-batch."""

    def __init__(self, model: Any, config: Config, spec: LossSpec) -> None:
        super().__init__()
        self.model, self.config, self.spec = model, config, spec

    def forward(self, batch: PackedBatch, rows: LossRows) -> GRPOLossOutput:
        """The loss of the batch's targets, its gradients made on the way."""
        hidden = packed_hidden_states(self.model, batch)[batch.logit_positions]  # (N, D)
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
def reference_logps(model: Any, batch: PackedBatch, config: Config) -> torch.Tensor:
    """(N,) fp32 log-probs of the batch's targets under a frozen model."""
    hidden = packed_hidden_states(model, batch)[batch.logit_positions]
    logps: torch.Tensor = model.lm_head.logps(
        hidden,
        targets=batch.targets,
        temperature=config.temperature,
        logits_dtype=config.logits_dtype,
    ).logps
    return logps
