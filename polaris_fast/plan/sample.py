"""What is traced in place of the whole model: the same widths, one layer of each kind, no memory.

It holds the configured adapters, put in by peft itself, so their count and types are peft's own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from ..config import Config
from ..model.layer_kernels import install_layer_kernels
from ..model.lora import Adapters
from ..model.memory import install_memory_savers
from ..model.packed import install_packing
from .shapes import ModelShape, meta_model


@dataclass(frozen=True)
class Trained:
    """The parameters that get gradients and moments."""

    elements: int
    largest: int  # elements of the largest single tensor
    itemsize: int  # bytes of an element as the model holds it
    extra: int  # bytes that adapters add to the model's own weights


def sample_model(shape: ModelShape, run: Config) -> Any:
    """The model to trace, in training mode, on the meta device.

    Raises:
        UserError: what the configuration asks for cannot be put into this model.
    """
    config, lora = copy.deepcopy(shape.config), run.lora
    kinds = list(dict.fromkeys(shape.layer_kinds))
    config.num_hidden_layers = len(kinds)
    if getattr(config, "layer_types", None):
        config.layer_types = kinds
    model = meta_model(config, getattr(torch, run.dtype))
    install_packing(model)
    if run.liger_kernels:
        install_layer_kernels(model, rope=False)  # which is shared by all models, and as large
    if lora.r > 0:
        with torch.device("meta"):
            Adapters(model, lora)
        # peft gives them the model's type, but for those on the meta device
        for adapter in filter(lambda p: p.requires_grad, model.parameters()):
            adapter.data = adapter.data.to(getattr(torch, run.dtype))
        # all layers but the first hand a gradient on
        model.enable_input_require_grads()
    install_memory_savers(model, run)
    return model.train()


def trained_parameters(config: Config, shape: ModelShape) -> Trained:
    """All of them, or the adapters alone.

    Raises:
        UserError: as `sample_model`.
    """
    dtype = getattr(torch, config.dtype)
    if config.lora.r == 0:
        return Trained(shape.num_parameters, shape.largest_parameter, dtype.itemsize, 0)
    model = sample_model(shape, config)
    elements = largest = itemsize = 0
    for kind, layer in zip(
        dict.fromkeys(shape.layer_kinds), model.get_decoder().layers, strict=True
    ):
        adapters = [p for p in layer.parameters() if p.requires_grad]
        elements += shape.layer_kinds.count(kind) * sum(p.numel() for p in adapters)
        largest = max(largest, *(p.numel() for p in adapters))
        itemsize = max(p.itemsize for p in adapters)
    return Trained(elements, largest, itemsize, elements * itemsize)
