"""The paper's results, shipped as reference lines: another judge and another set of prompts."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def reference() -> dict[str, Any]:
    """`source` (text) and `rows`: name, and by measure the value of each bucket, all, slope.

    `s` is one number, over LongBench-Write's own prompts. What the paper does not tell is absent.
    """
    text = (resources.files(__package__) / "reference.json").read_text(encoding="utf-8")
    tree: dict[str, Any] = json.loads(text)
    return tree
