"""What every section of the configuration is made from."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationInfo,
    field_validator,
)

from ..judge_presets import url_from_environment

# YAML 1.1 reads a bare `off` as false.
Off = BeforeValidator(lambda value: "off" if value is False else value)


def not_blank(value: str | None) -> str | None:
    """A blank text is no way to say null."""
    if value is not None and not value.strip():
        raise ValueError(f"empty value {value!r}; give one, or null")
    return value


NotBlank = Annotated[str | None, AfterValidator(not_blank)]
Url = Annotated[NotBlank, BeforeValidator(url_from_environment)]


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

    @field_validator("*", mode="before")
    @classmethod
    def _check_number(cls, value: Any, info: ValidationInfo) -> Any:
        """A key without its value reads as true, which pydantic would turn into 1."""
        if isinstance(value, bool) and info.field_name is not None:
            kind = cls.model_fields[info.field_name].annotation
            if {int, float} & {kind, *get_args(kind)}:
                raise ValueError(f"needs a number, got {str(value).lower()}; give one")
        return value
