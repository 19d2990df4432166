"""The models of a comparison: where they lie, what they are called, what they were trained on.

A story is kept under its model's fingerprint, so a folder whose weights have changed is written
with anew, and a folder that was only moved is not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from ..model.load import read_config
from ..prompts import load_tokenizer
from ..run_folder import CONFIG_FILE, newest_model
from ..types import UserError

_HASHED = (".json", ".safetensors", ".bin", ".jinja", ".txt", ".model")
# Beside a checkpoint's weights, and no part of the model.
_NOT_THE_MODEL = ("trainer_state.json", "manifest.json")


@dataclass(frozen=True)
class ModelRef:
    """One model to be evaluated."""

    name: str  # short, unique in the comparison
    path: str  # folder or hub id
    run_dir: Path | None  # of the run that it lies in
    fingerprint: str = ""  # of config, tokenizer and weights, once they were read


def find_models(paths: Sequence[str]) -> list[ModelRef]:
    """Look at every model: its config and tokenizer can be read. Weights are not touched.

    Args:
        paths: folders, run folders (their newest checkpoint) or hub ids.

    Raises:
        UserError: one cannot be read.
    """
    found = [newest_model(path) for path in paths]
    for path in found:
        read_config(path)
        load_tokenizer(path)
    names = short_names(found)
    return [ModelRef(n, path, _run_of(path)) for n, path in zip(names, found, strict=True)]


def with_fingerprints(models: Sequence[ModelRef]) -> list[ModelRef]:
    """The models with their fingerprints; reads all weights once.

    Raises:
        UserError: two are the same.
    """
    seen: dict[str, str] = {}
    for model in models:
        fingerprint = _fingerprint(model.path)
        if fingerprint in seen:
            raise UserError(
                f"--model: {seen[fingerprint]} and {model.path} are the same model; give each once"
            )
        seen[fingerprint] = model.path
    return [replace(m, fingerprint=f) for m, f in zip(models, seen, strict=True)]


def short_names(paths: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    parts = [
        Path(os.path.abspath(p)).parts if Path(p).is_dir() else tuple(p.split("/")) for p in paths
    ]
    deepest = max(len(p) for p in parts)
    for depth in range(1, deepest + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def run_settings(model: ModelRef) -> dict[str, object]:
    """The `judge` section of the run that made a model; {} without one."""
    if model.run_dir is None:
        return {}
    tree = yaml.safe_load((model.run_dir / CONFIG_FILE).read_text(encoding="utf-8")) or {}
    judge = tree.get("judge")
    return judge if isinstance(judge, dict) else {}


def stop_ids_at(path: str) -> frozenset[int]:
    """Tokens that the model's own generation config ends on; none without one."""
    from transformers import GenerationConfig

    try:
        ids = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids or [])


def _run_of(path: str) -> Path | None:
    folder = Path(path)
    parent = folder.resolve().parent if folder.is_dir() else None
    return parent if parent is not None and (parent / CONFIG_FILE).is_file() else None


def _fingerprint(path: str) -> str:
    """Of a folder its contents, of a hub id its commit."""
    if Path(path).is_dir():
        return _hash_folder(Path(path))
    return f"{path}@{getattr(read_config(path), '_commit_hash', None)}"


def _hash_folder(folder: Path) -> str:
    """sha256 over names and contents of everything that makes the model."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _HASHED):
        if path.name not in _NOT_THE_MODEL:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()[:16]
