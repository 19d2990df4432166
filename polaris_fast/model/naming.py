"""The names of a text model's weights in the checkpoints of its family.

A published Qwen3.5 checkpoint has the text model under `model.language_model.`, beside vision and
MTP weights. transformers' text model says `model.`; vLLM's classes take the checkpoint's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

_WITHIN_VISION_MODELS = ("qwen3_5_text", "qwen3_5_moe_text")
_TEXT, _IN_CHECKPOINT = "model.", "model.language_model."


def checkpoint_names(state: Mapping[str, T], model_type: str) -> Mapping[str, T]:
    """The same weights under the names of the family's published checkpoints.

    Args:
        state: by the trained text model's own names.
        model_type: of its transformers config.
    """
    if model_type not in _WITHIN_VISION_MODELS:
        return state
    return {
        _IN_CHECKPOINT + name.removeprefix(_TEXT) if name.startswith(_TEXT) else name: weight
        for name, weight in state.items()
    }
