"""Switches that trade time for memory in forward and backward of long rows.

Results and gradients stay what they are: the same operations run on the same numbers, some of them
twice (checkpointing), on fewer tokens at a time (tiles), or after a trip to CPU memory.

T packed tokens . D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..config import Config
from ..types import UserError


def install_memory_savers(model: Any, config: Config) -> None:
    """Switch on what the configuration asks for, in place; no parameter is renamed.

    Raises:
        UserError: `mlp_tile_tokens` is set and the model's layers have no `mlp` of one input.
    """
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.mlp_tile_tokens:
        _tile_mlps(model, config.mlp_tile_tokens)


def kept_activations(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """The block in which the body's forward runs: what it keeps for backward goes where configured.

    With checkpointing that is each layer's input, (T, D), and nothing that is made again.
    """
    if not config.offload_activations:
        return nullcontext()
    return torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda")


def _tile_mlps(model: Any, num_tokens: int) -> None:
    for layer in model.get_decoder().layers:
        mlp = getattr(layer, "mlp", None)
        if mlp is None or not hasattr(mlp, "down_proj"):
            raise UserError(
                f"mlp_tile_tokens: the layers of {type(model).__name__} have no plain MLP to tile; "
                "set mlp_tile_tokens to 0"
            )
        mlp.forward = partial(_in_tiles, mlp.forward, num_tokens)


def _in_tiles(forward: Callable[[Tensor], Tensor], num_tokens: int, hidden: Tensor) -> Tensor:
    """The MLP on `num_tokens` at a time: its wide activations never exist for all tokens.

    Args:
        hidden: (..., T, D); a token's result depends on that token alone.
    """
    if hidden.shape[-2] <= num_tokens:
        return forward(hidden)
    tiles = hidden.split(num_tokens, dim=-2)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(forward, tile, use_reentrant=False) for tile in tiles], -2)
    return torch.cat([forward(tile) for tile in tiles], -2)
