"""Rows that are longer than the positions a model was made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polaris_fast.model.load import read_config
from polaris_fast.types import UserError


def check_positions(path: str, limit: int, longest: Callable[[], int]) -> str | None:
    """Compare the run's rows with the `max_position_embeddings` of a model's config.

    Args:
        path: folder or hub id of the model; its weights are not read.
        limit: tokens of a row at most, by the settings.
        longest: tokens of the longest row there can be, by the data; asked only where `limit`
            is too much.
    Returns:
        a warning where scaled rotary embeddings may reach further; None where all rows fit, or the
        config tells no limit.
    Errors: UserError for rows that are longer.
    """
    config = read_config(path).get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if not positions or positions < 0 or limit <= positions:
        return None
    tokens = longest()
    if tokens <= positions:
        return None
    words = (
        f"max_completion_length: rows can be {tokens} tokens long, with their prompts, but "
        f"{path!r} was made for {positions} (max_position_embeddings)"
    )
    if _is_scaled(getattr(config, "rope_parameters", None) or {}):
        return f"{words}; its scaled rotary embedding must reach as far"
    raise UserError(
        f"{words}; lower max_completion_length, leave longer stories out, or set rope_parameters "
        "that reach as far in the model's config.json"
    )


def _is_scaled(rope: dict[str, Any]) -> bool:
    """Whether any layer's rotary embedding is more than the plain one."""
    kinds = [rope, *(inner for inner in rope.values() if isinstance(inner, dict))]
    return any(kind.get("rope_type", "default") != "default" for kind in kinds)
