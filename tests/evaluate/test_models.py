"""What a model is called, what it is known by, and what it ends on."""

from __future__ import annotations

import shutil

import pytest

from polaris_fast.evaluate.models import find_models, short_names, stop_ids_at, with_fingerprints
from polaris_fast.types import UserError


def fingerprint(path):
    return with_fingerprints(find_models([str(path)]))[0].fingerprint


def test_a_fingerprint_is_of_the_contents_not_of_the_place(tiny_models, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_models[0], moved)
    assert fingerprint(moved) == fingerprint(tiny_models[0]) != fingerprint(tiny_models[1])
    (moved / "trainer_state.json").write_text("{}")  # beside the model, no part of it
    assert fingerprint(moved) == fingerprint(tiny_models[0])
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    assert fingerprint(moved) != fingerprint(tiny_models[0])


def test_a_run_folder_stands_for_its_newest_checkpoint(tiny_models, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        find_models([str(tmp_path)])
    for step in (5, 10):
        shutil.copytree(tiny_models[0], tmp_path / f"checkpoint-{step}")
    found = find_models([str(tmp_path)])[0]
    assert found.name == "checkpoint-10" and found.run_dir == tmp_path


def test_names_are_as_long_as_it_takes():
    assert short_names(["a/base", "a/checkpoint-5"]) == ["base", "checkpoint-5"]
    assert short_names(["x/checkpoint-5", "y/checkpoint-5"]) == ["x/checkpoint-5", "y/checkpoint-5"]
    assert short_names(["Qwen/Qwen3.5-9B"]) == ["Qwen3.5-9B"]


def test_stop_ids_of_the_generation_config(tiny_models, tmp_path):
    assert stop_ids_at(str(tmp_path)) == frozenset()
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 5]}')
    assert stop_ids_at(str(tmp_path)) == {3, 5}
