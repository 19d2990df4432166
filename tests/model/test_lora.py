"""Adapters: merged checkpoints compute what the adapted model computes; off, it is the base."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from polaris_fast.config import Config, LoraConfig
from polaris_fast.engine import SingleEngine
from polaris_fast.engine.policy import save_model
from polaris_fast.merging import Adapted, base_of, whole
from polaris_fast.model.load import load_causal_lm, prepare_model
from polaris_fast.model.lora import Adapters, whole_state
from polaris_fast.model.packed import packed_hidden_states
from polaris_fast.model.tiny import tiny_model
from polaris_fast.packing import pack_rows
from polaris_fast.types import UserError
from tests.runs import exact, metrics_of, train

pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")


class _Row:
    def __init__(self, length: int, seed: int) -> None:
        ids = torch.randint(5, 290, (length,), generator=torch.Generator().manual_seed(seed))
        self.prompt_ids, self.completion_ids = ids[:3].tolist(), ids[3:].tolist()


def _batch() -> Any:
    return pack_rows([_Row(9, 0), _Row(14, 1)])


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.lm_head(packed_hidden_states(model, _batch()))  # type: ignore[no-any-return]


def _adapted(family: Any = "qwen3_5", **options: Any) -> tuple[Any, Adapters]:
    """A model whose adapters do something: peft starts them at zero."""
    model = prepare_model(tiny_model(family, vocab_size=300, seed=1))
    adapters = Adapters(model, LoraConfig(r=4, alpha=8.0, **options))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return model, adapters


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3", "llama"])
def test_a_saved_model_computes_what_the_adapted_one_does(family: str, tmp_path: Path) -> None:
    model, adapters = _adapted(family)
    save_model(model, adapters, whole_state(model), tmp_path)
    plain = load_causal_lm(tmp_path, dtype=torch.float32)
    assert not any("lora" in name or "base_layer" in name for name, _ in plain.named_parameters())
    torch.testing.assert_close(_logits(plain), _logits(model), rtol=1e-4, atol=1e-5)


def test_what_is_to_be_merged_tells_type_and_shape_before_it_is() -> None:
    model, adapters = _adapted()
    state = whole_state(model)
    merged, to_merge = adapters.merged(state), adapters.to_merge(state)
    assert list(merged) == list(to_merge)
    assert any(isinstance(weight, Adapted) for weight in to_merge.values())
    for name, weight in to_merge.items():
        base = base_of(weight)
        assert (base.dtype, base.shape) == (merged[name].dtype, merged[name].shape)
        assert torch.equal(whole(weight), merged[name])


def test_with_the_adapters_off_the_model_is_its_own_reference() -> None:
    model, adapters = _adapted()
    base = prepare_model(tiny_model("qwen3_5", vocab_size=300, seed=1))
    with adapters.off():
        torch.testing.assert_close(_logits(model), _logits(base), rtol=0, atol=0)
    assert (_logits(model) - _logits(base)).abs().max() > 1e-3


def test_only_the_adapters_are_trained() -> None:
    model, _ = _adapted()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)


def test_reference_log_probs_come_from_the_base_weights() -> None:
    model, adapters = _adapted()
    config = Config(dtype="float32", beta=0.1, lora=LoraConfig(r=4, alpha=8.0))
    spec = config.loss_spec()
    engine = SingleEngine(model, config, spec, total_updates=1, adapters=adapters)
    base = prepare_model(tiny_model("qwen3_5", vocab_size=300, seed=1))
    plain = SingleEngine(base, config, spec, total_updates=1, reference=base)
    batch = _batch()
    torch.testing.assert_close(engine.ref_logps(batch), plain.ref_logps(batch), rtol=0, atol=0)


def test_layers_that_do_not_exist_are_named() -> None:
    with pytest.raises(UserError, match=r"lora\.target_modules.*no_such_layer"):
        _adapted(target_modules=("no_such_layer",))


def test_an_adapter_on_the_head_is_refused() -> None:
    with pytest.raises(UserError, match=r"lora\.target_modules.*lm_head"):
        _adapted(target_modules=("lm_head", "q_proj"))


def test_an_adapter_on_the_embedding_is_refused_before_any_step() -> None:
    with pytest.raises(
        UserError, match=r"lora\.target_modules.*embed_tokens, whose Embedding.*\[q_proj"
    ):
        _adapted(target_modules=("embed_tokens", "q_proj"))


def test_an_adapter_on_a_parameter_of_a_linear_layer_is_refused() -> None:
    """peft's wrapper of a single parameter has the scaling of a layer's, and merges otherwise."""
    peft = pytest.importorskip("peft")
    model = prepare_model(tiny_model("llama", vocab_size=300))

    def on_a_parameter(model: Any, config: Any, **options: Any) -> Any:
        config.target_modules = []
        config.target_parameters = ["q_proj.weight"]
        return get_peft_model(model, config, **options)

    get_peft_model = peft.get_peft_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peft, "get_peft_model", on_a_parameter)
        with pytest.raises(UserError, match=r"lora\.target_modules"):
            Adapters(model, LoraConfig(r=4))


@pytest.mark.slow
def test_a_run_with_adapters_learns_saves_and_resumes_exactly(tmp_path: Path) -> None:
    settings = {"lora__r": 4, "lora__alpha": 8, "beta": 0.01}
    assert train(tmp_path / "whole", **settings) == 0
    assert train(tmp_path / "cut", max_steps=1, **settings) == 0
    assert train(tmp_path / "cut", resume_from_checkpoint=tmp_path / "cut", **settings) == 0
    assert exact(tmp_path / "cut") == exact(tmp_path / "whole")
    assert metrics_of(tmp_path / "whole")[1]["kl"] > 0
    base = load_causal_lm(tmp_path / "whole" / "base", dtype=torch.float32)
    first, last = (
        load_causal_lm(tmp_path / "whole" / f"checkpoint-{n}", dtype=torch.float32) for n in (1, 2)
    )
    assert torch.equal(base.lm_head.weight, last.lm_head.weight)
    moved = [
        not torch.equal(a, b) for a, b in zip(first.parameters(), last.parameters(), strict=True)
    ]
    assert any(moved)


def test_a_checkpoint_without_adapters_is_refused(tmp_path: Path) -> None:
    _, adapters = _adapted()
    with pytest.raises(UserError, match=r"holds no adapters"):
        adapters.load(tmp_path)
