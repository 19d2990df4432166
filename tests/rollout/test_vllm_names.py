"""Weights of a text model under the names of the checkpoint it came from."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from polaris_fast.model.load import load_causal_lm
from polaris_fast.model.lora import whole_state
from polaris_fast.model.tiny import tiny_config
from polaris_fast.rollout.vllm.names import checkpoint_names


def test_a_vision_models_text_weights_go_by_its_checkpoints_names(tmp_path: Path) -> None:
    text = tiny_config("qwen3_5", vocab_size=64)
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
    vision |= {"out_hidden_size": text.hidden_size, "num_position_embeddings": 16}
    whole = Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(text_config=text.to_dict(), vision_config=vision, tie_word_embeddings=False)
    )
    whole.save_pretrained(tmp_path)
    model = load_causal_lm(tmp_path, dtype="float32")
    sent = checkpoint_names(whole_state(model), model.config.model_type)
    expected = {n: w for n, w in whole.state_dict().items() if not n.startswith("model.visual.")}
    assert set(sent) == set(expected)
    assert all(torch.equal(sent[name], expected[name]) for name in expected)


def test_other_families_keep_their_names() -> None:
    state = {"model.norm.weight": torch.ones(2), "lm_head.weight": torch.ones(2, 2)}
    assert checkpoint_names(state, "qwen3") == state
