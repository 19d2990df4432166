"""Fills a template of this folder and writes the page: one file, no network, no script."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..types import UserError

HERE = Path(__file__).parent


def fill_template(name: str, **values: Any) -> str:
    """The page as text; every value is escaped but the charts and the style."""
    from .drawing import number  # here, because matplotlib takes half a second to import

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=lambda value: number(float(value)),
        signed=lambda value: _minus(f"{value:+.2f}"),
        two=lambda value: _minus(f"{value:.2f}"),
        svg=Markup,
    )
    style = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(name).render(style=style, **values).lstrip()


def write_page(page: str, path: Path) -> None:
    """Replace `path` in one step.

    Raises:
        UserError: it cannot be written.
    """
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        # A sampled text may hold half of a surrogate pair, which UTF-8 cannot say.
        fresh.write_bytes(page.encode("utf-8", errors="replace"))
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); the run itself is safe: make room or "
            "permit writing, then `python -m polaris_fast.report` and the run folder"
        ) from error


def _minus(text: str) -> str:
    """A typographic minus, and none before a zero."""
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")
