"""What one packed micro-batch needs beside weights and optimizer: read off the model's own code.

A model of the same widths with one layer of each kind runs forward and backward on the meta device
under a `Ledger`. Marks at the layers' borders give what a layer leaves for backward and what it
needs while it runs; the depth of the real model is put together from these.

T packed tokens . N targets . D hidden . V vocab.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Config
from ..model.packed import packed_hidden_states
from ..packing import PackedBatch, pack_rows
from .head import HeadBytes
from .kernels import Device, fused_head, standing_in
from .ledger import Ledger
from .sample import sample_model
from .shapes import ModelShape


@dataclass(frozen=True)
class StageBytes:
    """One stage of a micro-batch; peaks are above what was alive when its forward began."""

    saved: int  # stays for backward
    forward: int  # peak
    backward: int  # peak, with what was saved and the gradient that comes in


@dataclass(frozen=True)
class MicroBatchBytes:
    """A whole micro-batch, from embedding to head and back."""

    embedding: StageBytes
    layers: dict[str, StageBytes]  # by kind
    head: StageBytes  # final norm, fused head, loss
    order: tuple[str, ...]  # kind of every layer

    @property
    def saved(self) -> int:
        """What all layers together keep for backward."""
        return self.embedding.saved + sum(self.layers[kind].saved for kind in self.order)

    def offloaded(self) -> MicroBatchBytes:
        """The same with what layers keep for backward in CPU memory."""
        kept = {kind: replace(layer, saved=0) for kind, layer in self.layers.items()}
        return replace(self, layers=kept)

    def peaks(self) -> dict[str, int]:
        """Peak bytes of the three phases of a micro-batch."""
        before = self.embedding.saved
        forward, backward = self.embedding.forward, self.embedding.backward
        for kind in self.order:
            layer = self.layers[kind]
            forward = max(forward, before + layer.forward)
            backward = max(backward, before + layer.backward)
            before += layer.saved
        head = before + max(self.head.forward, self.head.backward)
        return {"forward": forward, "loss head": head, "backward": backward}


def micro_batch_bytes(
    shape: ModelShape,
    rows: Sequence[tuple[int, int]],
    head: HeadBytes,
    config: Config,
    device: Device,
) -> MicroBatchBytes:
    """What a micro-batch of the given rows needs; traced once for equal arguments.

    Args:
        rows: (prompt tokens, completion tokens) of each row.
        head: buffers of the fused head for all completion tokens.
        config: of the run: its type, adapters and switches.
        device: whose kernels run.
    """
    # all of the configuration that reaches the sample model
    settings = (
        config.dtype,
        config.gradient_checkpointing,
        config.mlp_tile_tokens,
        config.liger_kernels,
        config.lora,
    )
    key = (shape, tuple(rows), head, device, settings)
    if key not in _TRACED:
        _TRACED[key] = _trace(shape, rows, head, config, device)
    return _TRACED[key]


# A search for the longest row asks for the same lengths again and again.
_TRACED: dict[Hashable, MicroBatchBytes] = {}


def _trace(
    shape: ModelShape,
    rows: Sequence[tuple[int, int]],
    head: HeadBytes,
    config: Config,
    device: Device,
) -> MicroBatchBytes:
    model = sample_model(shape, config)
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        parameter.register_post_accumulate_grad_hook(_forget_grad)
    batch = pack_rows(
        [SimpleNamespace(prompt_ids=[0] * p, completion_ids=[0] * c) for p, c in rows], "meta"
    )
    known = [*model.parameters(), *model.buffers()]
    with standing_in(device, liger=config.liger_kernels):
        if device == "cpu":  # the layout's index plans live on the host and are not torch's
            with torch.no_grad():
                packed_hidden_states(model, batch)
        with Ledger(known) as ledger:
            marks = _Marks(model, ledger)
            loss = _loss(model, batch, head)
            marks.end_forward()
            loss.backward()
            marks.end_backward()
    return marks.result(shape.layer_kinds)


def _loss(model: Any, batch: PackedBatch, head: HeadBytes) -> Tensor:
    hidden = packed_hidden_states(model, batch)[batch.logit_positions]
    return fused_head(hidden, model.lm_head.weight, head.logits, head.weight_gradient)


def _forget_grad(parameter: Tensor) -> None:
    """Gradients that stay are part of the engine's state, not of the micro-batch."""
    parameter.grad = None


class _Marks:
    """Reads the ledger at the borders: embedding | layer | ... | layer | final norm and head."""

    def __init__(self, model: Any, ledger: Ledger) -> None:
        self.ledger = ledger
        self.body = model.get_decoder()
        self.base = [ledger.mark()]  # live bytes when each stage began
        self.forward: list[int] = []
        self.backward: list[int] = []
        self.in_forward = True
        self.kinds = getattr(model.config, "layer_types", None) or ["full_attention"]
        for module in (*self.body.layers, self.body.norm):
            module.register_forward_pre_hook(self._begin, with_kwargs=True)

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.in_forward:  # made again for backward
            return
        self.forward.append(self.ledger.peak)
        self.base.append(self.ledger.mark())
        entering: Tensor = args[0] if args else kwargs["hidden_states"]
        entering.register_hook(self._end_backward)

    def end_forward(self) -> None:
        self.forward.append(self.ledger.peak)
        self.ledger.mark()
        self.in_forward = False

    def _end_backward(self, grad: Tensor) -> None:
        self.backward.append(self.ledger.peak)
        self.ledger.mark()

    def end_backward(self) -> None:
        self.backward.append(self.ledger.peak)

    def result(self, order: tuple[str, ...]) -> MicroBatchBytes:
        saved = [after - before for before, after in zip(self.base, self.base[1:], strict=False)]
        stages = [
            StageBytes(s, f - b, k - b)
            for s, f, k, b in zip(
                (*saved, 0), self.forward, reversed(self.backward), self.base, strict=True
            )
        ]
        embedding, *layers, head = stages
        return MicroBatchBytes(embedding, dict(zip(self.kinds, layers, strict=True)), head, order)
