"""Weights of a base checkpoint that are not trained: carried along into every saved checkpoint.

A Qwen3.5 checkpoint holds a vision tower and MTP layers (multi-token prediction) beside the text
model that trains. What is saved has the base's configuration and its weight files, tensor by
tensor: the trained ones as they are now, the others as the base has them. So it loads wherever the
base does, for text or as a whole. A base of which all is trained is left to `save_pretrained`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..types import UserError
from .load import is_multimodal, read_config
from .naming import checkpoint_names

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OF_PROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


@dataclass(frozen=True)
class Base:
    """A checkpoint that holds more than the model that trains."""

    path: str  # folder or hub id
    files: dict[str, list[str]]  # names of its tensors by file
    is_multimodal: bool
    has_index: bool

    def name(self, state: Mapping[str, torch.Tensor], config: Any) -> Mapping[str, torch.Tensor]:
        """A text model's state dict under the names it has here."""
        return checkpoint_names(state, config.model_type) if self.is_multimodal else state


def find_base(state: Mapping[str, torch.Tensor], config: Any, path: str | None) -> Base | None:
    """The checkpoint at `path` if it holds weights that are not in `state`, else None.

    Args:
        state: of the text model that was loaded from there, or trained on from there, by its own
            names; only these are read.
        config: the text model's.
        path: folder or hub id; None for a model that is embedded.

    Raises:
        UserError: it is multimodal, but which of its tensors belong to the text model cannot be
            told, so nothing that is saved could be whole.
    """
    base = _read_names(path) if path is not None else None
    if base is None:
        return None
    stored = {name for names in base.files.values() for name in names}
    owned = set(base.name(state, config))
    if stored <= owned:
        return None
    # transformers writes tied weights once, and converts names of other families by itself
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if foreign := owned - stored - tied:
        if not base.is_multimodal:
            return None
        raise UserError(
            f"model_name_or_path: the weights of {base.path!r} do not go by the names of its text "
            f"model (no {min(foreign)}), so they cannot be saved beside its vision weights; save "
            "its text model alone with transformers and give that folder"
        )
    return base


def save_carried(model: Any, base: Base, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write configuration and weights into `folder`: the base's, with `state` in their places.

    Reads and writes one file of the base at a time.

    Args:
        state: whole tensors of the model by its own names, adapters merged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owned = base.name(state, model.config)
    size_bytes = 0
    for name, names in base.files.items():
        size_bytes += _write_file(_local(base.path, name), names, owned, folder / name)
    if base.has_index:
        weight_map = {name: file for file, names in base.files.items() for name in names}
        index = {"metadata": {"total_size": size_bytes}, "weight_map": weight_map}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
    config: Any = read_config(base.path)
    for part in (config, config.get_text_config()):
        part.dtype = model.dtype
    config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    for path in _processor_files(base.path):
        shutil.copyfile(path, folder / path.name)


def _write_file(
    source: Path, names: list[str], owned: Mapping[str, torch.Tensor], target: Path
) -> int:
    """Returns the bytes of the tensors."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(source, framework="pt") as stored:
        tensors = {
            # copied: tensors of one file may not share memory
            name: owned[name].to("cpu", copy=True).contiguous()
            if name in owned
            else stored.get_tensor(name)
            for name in names
        }
    save_file(tensors, target, metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def _read_names(path: str) -> Base | None:
    """None where the weights are no safetensors."""
    from safetensors import safe_open

    files: dict[str, list[str]] = {}
    if (single := _find(path, _SINGLE)) is not None:
        with safe_open(single, framework="pt") as stored:
            files[_SINGLE] = list(stored.keys())
    elif (index := _find(path, _INDEX)) is not None:
        for name, file in json.loads(index.read_text())["weight_map"].items():
            files.setdefault(file, []).append(name)
    else:
        return None
    return Base(path, files, is_multimodal(read_config(path)), has_index=single is None)


def _processor_files(path: str) -> Iterator[Path]:
    for name in _OF_PROCESSORS:
        if (found := _find(path, name)) is not None:
            yield found


def _local(path: str, name: str) -> Path:
    """A file of the base on this machine."""
    found = _find(path, name)
    if found is None:
        raise UserError(
            f"model_name_or_path: {path!r} has no {name} any more, from which weights that are not "
            "trained go into each checkpoint; put it back, then go on with resume_from_checkpoint"
        )
    return found


def _find(path: str, name: str) -> Path | None:
    """A file of a folder or of a hub id, which is downloaded once."""
    from transformers.utils import cached_file

    found = cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)
