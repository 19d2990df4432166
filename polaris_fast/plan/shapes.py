"""A model's real shapes from its config alone: no weights are read, nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..model.load import read_config
from ..types import UserError

# Text configs of published models, for when the config cannot be had on this machine.
# Qwen3.5-9B: its config.json; the parameter count they give is the published 8.954 B.
KNOWN_MODELS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3.5-9B": {
        "vocab_size": 248_320,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True)
class ModelShape:
    """Counts and widths of a causal LM."""

    name: str
    source: str  # where the config came from, for the reader
    config: Any = field(hash=False)  # transformers' text config
    num_parameters: int  # tied weights once
    embedding_parameters: int  # a lookup: no FLOPs of its own
    head_parameters: int  # V * D, whether tied or not
    largest_parameter: int  # elements of the largest single tensor
    layer_parameters: int  # elements of the largest layer

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The kind of every layer: full_attention, linear_attention, ..."""
        kinds = getattr(self.config, "layer_types", None)
        return tuple(kinds or ["full_attention"] * self.config.num_hidden_layers)

    @property
    def num_attention_layers(self) -> int:
        """Layers with a cache that grows with the row."""
        return sum(kind != "linear_attention" for kind in self.layer_kinds)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        config = self.config
        found = getattr(config, "head_dim", None)
        return int(found or config.hidden_size // config.num_attention_heads)

    @property
    def body_parameters(self) -> int:
        """Weights that multiply every token, the head's aside."""
        tied = self.config.tie_word_embeddings
        return (
            self.num_parameters - self.embedding_parameters - (0 if tied else self.head_parameters)
        )


def shape_of_run(config: Config) -> ModelShape:
    """The shape of the configured model.

    Raises:
        UserError: the folder has no config, the id is neither on this machine nor known here, or
            the architecture is not one the planner can trace.
    """
    path = config.model_name_or_path
    if path is None:
        return model_shape(_embedded_config(config), "embedded model", "built from `embedded`")
    if Path(path).expanduser().is_dir():
        return model_shape(read_config(path), path, "config.json of the folder")
    cached = _cached_config(path)
    if cached is not None:
        return model_shape(cached, path, "config.json on this machine")
    if path in KNOWN_MODELS:
        from transformers import Qwen3_5TextConfig

        known = Qwen3_5TextConfig(**KNOWN_MODELS[path])
        return model_shape(known, path, "built-in table: config.json is not on this machine")
    raise UserError(
        f"model_name_or_path: no config of {path!r} on this machine, and the planner downloads "
        f"nothing; give a folder that holds its config.json, or one of {', '.join(KNOWN_MODELS)}"
    )


def model_shape(config: Any, name: str, source: str) -> ModelShape:
    """Count the parameters of a transformers config, without memory for them.

    Raises:
        UserError: not a causal LM with a stack of decoder layers.
    """
    text = config.get_text_config()
    try:
        model = meta_model(text, torch.bfloat16)
        layers = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
        table, head = model.get_input_embeddings().weight, model.lm_head.weight
    except (AttributeError, ValueError, KeyError) as error:
        raise UserError(
            f"model_name_or_path: the planner cannot trace {name!r} ({error}); it knows causal LMs "
            "of the Qwen3.5, Qwen3 and Llama families"
        ) from error
    sizes = [parameter.numel() for parameter in model.parameters()]
    return ModelShape(
        name=name,
        source=source,
        config=text,
        num_parameters=sum(sizes),
        embedding_parameters=table.numel(),
        head_parameters=head.numel(),
        largest_parameter=max(sizes),
        layer_parameters=max(layers),
    )


def meta_model(config: Any, dtype: torch.dtype) -> Any:
    """The architecture on the meta device: shapes without memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _embedded_config(config: Config) -> Any:
    from ..model.tiny import tiny_config

    sizes = config.embedded
    return tiny_config(
        "qwen3_5",
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        num_layers=sizes.num_hidden_layers,
    )


def _cached_config(path: str) -> Any | None:
    """The config of a hub id where an earlier download left it; None: it is not there."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError):
        return None
