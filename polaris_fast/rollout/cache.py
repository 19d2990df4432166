"""transformers' cache with room to grow: a decoded token is written into it, nothing is copied.

B rows · H key/value heads · L tokens so far · d head dim. `DynamicLayer` concatenates keys and
values anew at every token, so a completion of L tokens copies L^2 / 2 of them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# Room is made for so many tokens, or for a share of those there, whichever is more.
_LEAST_ROOM, _ROOM_SHARE = 64, 0.25


class GrowingLayer(DynamicLayer):
    """Keys and values of one attention layer, as views of larger buffers."""

    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None  # (B, H, capacity, d) each

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, H, n, d) keys and values; returns all of them, (B, H, L + n, d)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._buffers = (
                _with_room(self.keys, key_states, start, end),
                _with_room(self.values, value_states, start, end),
            )
        keys, values = self._buffers
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keep the rows of beam_idx, int64 of any length; room is made at the next token."""
        self._buffers = None
        super().reorder_cache(beam_idx)


def growing_cache(config: Any) -> DynamicCache:
    """A cache for the model of this config; layers without keys and values are transformers'."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def _with_room(old: torch.Tensor, new: torch.Tensor, start: int, end: int) -> torch.Tensor:
    capacity = end + max(_LEAST_ROOM, int(_ROOM_SHARE * end))
    buffer = new.new_empty(*new.shape[:2], capacity, new.shape[-1])
    if start:
        buffer[:, :, :start] = old
    return buffer
