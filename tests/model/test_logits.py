"""Models that scale or cap their logits train on their own log-probs, or are refused at start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama import modeling_llama

from polaris_fast.config import Config
from polaris_fast.engine.policy import Policy, reference_logps
from polaris_fast.model import head_parity
from polaris_fast.model.load import prepare_model
from polaris_fast.model.logits import logit_options
from polaris_fast.model.parity import PackingLeak, check_packing
from polaris_fast.model.tiny import tiny_model
from polaris_fast.packing import PackedBatch, pack_rows
from polaris_fast.rollout_parity import trainer_logps
from polaris_fast.types import UserError
from polaris_kernels import LossRows

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
CHANGED = {
    "Granite": {"logits_scaling": 8.0, "attention_multiplier": 0.25},
    "Cohere": {"logit_scale": 0.0625},
    "Gemma2": {"head_dim": 16, "attn_logit_softcapping": None, "final_logit_softcapping": 3.0},
    "HyperCLOVAX": {"logits_scaling": 0.125},
}
ROW = SimpleNamespace(prompt_ids=[5], completion_ids=list(range(30, 53)))
FP32 = Config(dtype="float32")


def model_of(family: str, **fields: Any) -> Any:
    config = getattr(transformers, f"{family}Config")(**SIZES | fields)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@torch.no_grad()
def true_logps(model: Any) -> torch.Tensor:
    """(N,) by transformers alone, with the model's own eager attention."""
    model.set_attn_implementation("eager")
    ids = torch.tensor([ROW.prompt_ids + ROW.completion_ids])
    logps = model(ids).logits[0, :-1].log_softmax(-1)
    return logps.gather(-1, ids[0, 1:, None]).squeeze(-1)


def training_logps(model: Any, batch: PackedBatch) -> torch.Tensor:
    policy = Policy(model, FP32, FP32.loss_spec())
    rows = LossRows(
        row_of_token=batch.target_row,
        num_rows=1,
        advantages=torch.ones(1),
        is_human=torch.zeros(1, dtype=torch.bool),
        denominator=float(len(batch.targets)),
    )
    out = policy(batch, rows)
    out.loss.backward()
    return out.logps


@pytest.mark.parametrize("family", CHANGED)
def test_log_probs_everywhere_are_those_of_the_models_own_logits(family: str) -> None:
    model = model_of(family, **CHANGED[family])
    true = true_logps(model)
    prepare_model(model)
    check_packing(model)
    batch = pack_rows([ROW])
    found = (
        trainer_logps(model, ROW, FP32),  # type: ignore[arg-type]
        reference_logps(model, model, None, batch, FP32),
        training_logps(model, batch),
    )
    for logps in found:
        torch.testing.assert_close(logps, true, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_scaling_of_an_unknown_name_is_refused(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("Granite", **CHANGED["Granite"]).to(dtype)
    prepare_model(model)
    assert head_parity.check_head(model) < 0.01
    monkeypatch.setattr(head_parity, "logit_options", lambda config: {})
    with pytest.raises(UserError, match=r"model_name_or_path: the logits of GraniteForCausalLM"):
        check_packing(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_cap_of_an_unknown_name_is_refused_though_fresh_logits_are_below_it(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"head_dim": 16, "attn_logit_softcapping": None, "final_logit_softcapping": 30.0}
    model = model_of("Gemma2", initializer_range=0.02, **fields).to(dtype)
    prepare_model(model)
    assert head_parity.check_head(model) < 0.01
    monkeypatch.setattr(head_parity, "logit_options", lambda config: {})
    with pytest.raises(UserError, match="log-probs of the fused head differ by"):
        check_packing(model)


@pytest.mark.parametrize(
    ("family", "fields", "reason"),
    [
        ("Gemma2", {"head_dim": 16}, r"Gemma2Attention caps its scores at 50\.0"),
        (
            "GptOss",
            {"head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1},
            "GptOssAttention has attention sinks",
        ),
    ],
)
def test_capped_attention_and_sinks_are_refused_by_name(
    family: str, fields: dict[str, Any], reason: str
) -> None:
    model = prepare_model(model_of(family, **fields))
    with pytest.raises(UserError, match=f"model_name_or_path: {reason}"):
        check_packing(model)


def test_attention_that_only_the_models_own_function_computes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A change of its scores that the layer tells no other kernel of."""
    model: Any = prepare_model(tiny_model("llama", initializer_range=0.2))
    name = model.config._attn_implementation
    check_packing(model)

    def sharper(module: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        return own(module, 2 * query, *args, **kwargs)

    own = modeling_llama.eager_attention_forward
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", sharper)
    with pytest.raises(PackingLeak, match="the same kernels on one row show"):
        check_packing(model)
    assert model.config._attn_implementation == name


def test_the_probe_of_the_head_leaves_the_body_as_it_was() -> None:
    model: Any = prepare_model(tiny_model("llama"))
    before = true_logps(model)
    head_parity.check_head(model)
    assert "forward" not in model.get_decoder().__dict__
    assert torch.equal(true_logps(model), before)


def test_a_model_that_leaves_its_logits_alone_gets_no_options() -> None:
    assert logit_options(tiny_model("qwen3_5").config) == {"logit_scale": 1.0, "softcap": None}
