"""Puts a measured noise into a configuration file and leaves the rest of the file as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ...types import UserError

_SECTION = re.compile(r"^judge:[ \t]*(?:#.*)?$", re.MULTILINE)
_OLD = re.compile(r"^[ \t]+noise_std:.*\n?", re.MULTILINE)


def write_noise_floor(path: Path, noise_std: float) -> str:
    """Set `judge.noise_std` in a YAML file, made where there is none; returns a line that says so.

    Comments and order stay. Raises UserError when the file cannot be read, written, or edited
    line by line (a `judge: {...}` on one line).
    """
    line = f"  noise_std: {noise_std:.4f}\n"
    text = _read(path)
    before = _tree(path, text)
    section = _SECTION.search(text)
    if section is not None:
        head, body, rest = _split(text, section.end())
        text = f"{head}\n{line}{_OLD.sub('', body)}{rest}"
    elif "judge" not in before:
        text += ("" if not text or text.endswith("\n") else "\n") + f"judge:\n{line}"
    wanted = before | {"judge": (before.get("judge") or {}) | {"noise_std": round(noise_std, 4)}}
    if _tree(path, text) != wanted:
        raise UserError(f"--write {path}: its judge section cannot be edited; put it in yourself:"
                        f" noise_std: {noise_std:.4f}")  # fmt: skip
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--write {path}: cannot be written ({error.strerror})") from error
    return f"judge.noise_std: {noise_std:.4f} written to {path}"


def _split(text: str, after: int) -> tuple[str, str, str]:
    """(up to the section's line, its indented lines, the rest)."""
    body = re.match(r"\n(?:(?:[ \t]+.*|[ \t]*#.*|[ \t]*)(?:\n|\Z))*", text[after:])
    end = after + (body.end() if body is not None else 0)
    return text[:after], text[after + 1 : end], text[end:]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--write {path}: cannot be read ({error})") from error


def _tree(path: Path, text: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--write {path}: not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"--write {path}: must hold `key: value` lines")
    return tree
