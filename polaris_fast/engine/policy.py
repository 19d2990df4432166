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
from ..model.carried import find_base, save_carried
from ..model.logits import logit_options
from ..model.lora import Adapters
from ..model.memory import kept_activations, logits_chunk_bytes
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
            **head_options(self.model, self.config),
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
            **head_options(reference, config),
        ).logps
        return logps


def head_options(model: Any, config: Config) -> dict[str, Any]:
    """The run's settings, and what the model does to its logits, as the fused head's keywords."""
    head = model.lm_head
    return {
        "temperature": config.temperature,
        "logits_dtype": config.logits_dtype,
        "chunk_bytes": logits_chunk_bytes(
            config, head.in_features, head.out_features, model.device.type
        ),
        **logit_options(model.config),
    }


def save_model(
    model: Any,
    adapters: Adapters | None,
    state: Mapping[str, torch.Tensor],
    folder: Path,
    base_path: str | None = None,
) -> None:
    """Write a folder for `from_pretrained`: merged weights, and the adapters beside them.

    Args:
        state: whole tensors of the model's state dict.
        base_path: the checkpoint that training began from, whose other weights are carried along.
    """
    merged = dict(state) if adapters is None else adapters.merged(state)
    assert adapters is not None or merged.keys() >= model.state_dict().keys()  # else the base's
    if (base := find_base(merged, model.config, base_path)) is not None:
        save_carried(model, base, merged, folder)
    else:
        model.save_pretrained(folder, state_dict=merged)
    if adapters is not None:
        adapters.save(folder, state)
