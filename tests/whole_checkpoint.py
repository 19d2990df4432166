"""A tiny Qwen3.5 checkpoint as the published ones are: text model, vision tower and MTP weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from polaris_fast.model.tiny import tiny_config

VISION = {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2}
MTP = {"mtp.fc.weight": (64, 128), "mtp.norm.weight": (64,)}


def save_whole(
    folder: Path, *, max_shard_size: str = "1GB", dtype: torch.dtype = torch.float32, **sizes: Any
) -> Qwen3_5ForConditionalGeneration:
    """Write it, with a processor's file, and return what it was written from.

    Args:
        max_shard_size: of a weight file; a small one makes several and an index.
        sizes: arguments of `tiny_config`.
    """
    text = tiny_config("qwen3_5", **sizes)
    vision = VISION | {"out_hidden_size": text.hidden_size, "num_position_embeddings": 16}
    config = Qwen3_5Config(
        text_config=text.to_dict(),
        vision_config=vision,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = Qwen3_5ForConditionalGeneration(config).to(dtype).eval()
        extra = {name: torch.randn(shape).to(dtype) for name, shape in MTP.items()}
    whole.save_pretrained(folder, max_shard_size=max_shard_size)
    _add(folder, extra)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "tiny"}')
    return whole


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's weight files; no name may be in two."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        assert not found.keys() & tensors.keys()
        found |= tensors
    return found


def _add(folder: Path, extra: dict[str, torch.Tensor]) -> None:
    """transformers' classes have no MTP layers, so they cannot write any."""
    path = sorted(folder.glob("*.safetensors"))[0]
    save_file(load_file(path) | extra, path, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = json.loads(index.read_text())
        listed["weight_map"] |= dict.fromkeys(extra, path.name)
        index.write_text(json.dumps(listed))
