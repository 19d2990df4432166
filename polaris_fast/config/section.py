"""What every section of the configuration is made from."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from ..judge_presets import url_from_environment

# YAML 1.1 reads a bare `off` as false.
Off = BeforeValidator(lambda value: "off" if value is False else value)


Url = Annotated[str | None, BeforeValidator(url_from_environment)]


def tracker_list(value: Any) -> Any:
    """TRL's forms: one name, "none", or a list."""
    if value is None or value == "none":
        return []
    return [value] if isinstance(value, str) else value


class Section(BaseModel):
    """Base of every section: no unknown keys, docstrings under fields are their descriptions."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        frozen=True,
        coerce_numbers_to_str=True,  # --run_name 7
    )
