"""A checkpoint of a model with vision stays whole: what is not trained is saved along."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3_5ForConditionalGeneration

from polaris_fast.config import LoraConfig
from polaris_fast.engine.policy import save_model
from polaris_fast.model.carried import find_base
from polaris_fast.model.load import load_causal_lm
from polaris_fast.model.lora import Adapters, whole_state
from polaris_fast.model.naming import checkpoint_names
from polaris_fast.model.tiny import tiny_model
from polaris_fast.types import UserError
from tests.whole_checkpoint import MTP, save_whole, stored

SMALL = {"vocab_size": 64}
IDS = torch.tensor([[3, 1, 4, 1, 5]])


def disturbed(base: Path, dtype: str = "float32") -> Any:
    """The text model of a checkpoint, every weight of it trained a little."""
    model = load_causal_lm(base, dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01)
    return model


def save(model: Any, base: Path, folder: Path) -> None:
    save_model(model, None, whole_state(model), folder, str(base))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("max_shard_size", ["1GB", "40KB"], ids=["one file", "shards"])
def test_what_is_saved_has_the_trained_weights_and_the_bases_others(
    tmp_path: Path, max_shard_size: str, tied: bool
) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    save_whole(base, max_shard_size=max_shard_size, tie_word_embeddings=tied, **SMALL)
    assert (len(list(base.glob("*.safetensors"))) > 1) == (max_shard_size == "40KB")
    model = disturbed(base)
    save(model, base, saved)

    before, after = stored(base), stored(saved)
    assert before.keys() == after.keys()
    trained = checkpoint_names(whole_state(model), model.config.model_type)
    for name, tensor in after.items():
        expected = trained.get(name, before[name])
        assert torch.equal(tensor, expected), name
        assert torch.equal(tensor, before[name]) == name.startswith(("mtp.", "model.visual."))
    assert len(list(saved.glob("*.safetensors"))) == len(list(base.glob("*.safetensors")))
    index = saved / "model.safetensors.index.json"
    assert index.is_file() == (max_shard_size == "40KB")
    if index.is_file():
        listed = json.loads(index.read_text())
        assert listed["weight_map"].keys() == after.keys()
        assert listed["metadata"]["total_size"] == sum(t.nbytes for t in after.values())


def test_it_loads_as_a_whole_as_text_and_to_train_on(tmp_path: Path) -> None:
    base, saved, again = (tmp_path / name for name in ("base", "saved", "again"))
    whole = save_whole(base, **SMALL)
    model = disturbed(base)
    save(model, base, saved)
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["Qwen3_5ForConditionalGeneration"]
    assert (saved / "preprocessor_config.json").is_file()
    reloaded = Qwen3_5ForConditionalGeneration.from_pretrained(saved)
    pixels = torch.randn(4, 3 * 2 * 16 * 16, generator=torch.Generator().manual_seed(0))
    grid = torch.tensor([[1, 2, 2]])
    with torch.no_grad():
        expected = model(IDS).logits
        torch.testing.assert_close(reloaded(input_ids=IDS).logits, expected)
        text = AutoModelForCausalLM.from_pretrained(saved)
        torch.testing.assert_close(text(IDS).logits, expected)
        seen, original = (m.model.visual(pixels, grid_thw=grid) for m in (reloaded, whole))
        torch.testing.assert_close(seen.pooler_output, original.pooler_output)
    resumed = load_causal_lm(saved, dtype="float32")
    trained = model.state_dict()
    assert all(torch.equal(t, trained[name]) for name, t in resumed.state_dict().items())
    save(resumed, saved, again)  # a run that starts from a checkpoint
    assert all(torch.equal(t, stored(again)[name]) for name, t in stored(saved).items())


def test_another_dtype_than_the_bases_is_told(tmp_path: Path) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    save_whole(base, dtype=torch.float32, **SMALL)
    save(disturbed(base, "bfloat16"), base, saved)
    config = json.loads((saved / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["dtype"] == "bfloat16"
    dtypes = {name: tensor.dtype for name, tensor in stored(saved).items()}
    assert dtypes["lm_head.weight"] == torch.bfloat16
    assert {dtypes[name] for name in MTP} == {torch.float32}


@pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")
def test_adapters_are_merged_into_it(tmp_path: Path) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    save_whole(base, **SMALL)
    model = load_causal_lm(base, dtype="float32")
    adapters = Adapters(model, LoraConfig(r=2, alpha=4.0))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.fill_(0.05)
    save_model(model, adapters, whole_state(model), saved, str(base))
    before, after = stored(base), stored(saved)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("model.language_model.layers.") for name in changed)
    assert (saved / "adapter" / "adapter_model.safetensors").is_file()


def test_mtp_weights_of_a_checkpoint_without_vision_are_kept(tmp_path: Path) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    tiny_model("qwen3_5", **SMALL).save_pretrained(base)
    extra = {"mtp.norm.weight": torch.ones(64)}
    path = base / "model.safetensors"
    save_file(load_file(path) | extra, path, metadata={"format": "pt"})
    save(disturbed(base), base, saved)
    assert stored(saved).keys() == stored(base).keys()
    assert torch.equal(stored(saved)["mtp.norm.weight"], torch.ones(64))
    AutoModelForCausalLM.from_pretrained(saved)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3", "llama"])
def test_a_base_of_which_all_is_trained_carries_nothing(family: Any, tmp_path: Path) -> None:
    model = tiny_model(family, **SMALL)
    model.save_pretrained(tmp_path)
    assert find_base(model.state_dict(), model.config, str(tmp_path)) is None
    assert find_base(model.state_dict(), model.config, None) is None


def test_weights_that_do_not_go_by_their_names_are_refused_at_once(tmp_path: Path) -> None:
    save_whole(tmp_path, **SMALL)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.fused"] = tensors.pop("lm_head.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    model = tiny_model("qwen3_5", **SMALL)
    with pytest.raises(UserError, match=r"model_name_or_path: .*no lm_head\.weight") as error:
        find_base(model.state_dict(), model.config, str(tmp_path))
    assert "save its text model alone" in str(error.value)


def test_a_base_that_is_gone_is_named(tmp_path: Path) -> None:
    base = tmp_path / "base"
    save_whole(base, max_shard_size="40KB", **SMALL)
    model = disturbed(base)
    sorted(base.glob("*.safetensors"))[1].unlink()
    with pytest.raises(UserError, match=r"has no model-00002-of-.* any more.*put it back"):
        save(model, base, tmp_path / "saved")
