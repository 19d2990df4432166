"""Liger's kernels in the layers: which modules they replace, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3_5 import modeling_qwen3_5
from triton.runtime import interpreter

from polaris_fast.config import Config
from polaris_fast.model.layer_kernels import check_layer_kernels, install_layer_kernels
from polaris_fast.model.load import prepare_model
from polaris_fast.model.packed import packed_hidden_states
from polaris_fast.model.tiny import tiny_model
from polaris_fast.packing import pack_rows
from polaris_fast.types import UserError

MODULES = {"qwen3_5": modeling_qwen3_5, "qwen3": modeling_qwen3, "llama": modeling_llama}


@pytest.fixture(autouse=True)
def own_rotary_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts back after each test what Liger replaces for a whole process."""
    for module in MODULES.values():
        monkeypatch.setattr(module, "apply_rotary_pos_emb", module.apply_rotary_pos_emb)


@pytest.fixture
def interpretable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton's compiler does and its interpreter does not: tensors of float arguments, and
    libdevice."""
    real = interpreter._implicit_cvt

    def converted(arg: Any) -> Any:
        if not isinstance(arg, float):
            return real(arg)
        handle = interpreter.TensorHandle(np.array([arg], dtype=np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    monkeypatch.setattr(interpreter, "_implicit_cvt", converted)
    # late: the interpreter replaces tl.math while a kernel runs
    monkeypatch.setattr("liger_kernel.ops.rms_norm.rsqrt", lambda x: tl.math.rsqrt(x))


def gradients(model: Any, rows: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    hidden = packed_hidden_states(model, pack_rows(rows))
    (hidden * torch.linspace(-1, 1, hidden.shape[-1])).sum().backward()
    return hidden.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.usefixtures("interpretable")
@pytest.mark.parametrize("family", MODULES)
def test_states_and_gradients_are_unchanged(family: Any, make_rows: Callable[..., Any]) -> None:
    rows = make_rows((7, 3))
    sizes: dict[str, Any] = {"num_layers": 4 if family == "qwen3_5" else 1}
    plain: Any = prepare_model(tiny_model(family, **sizes)).train()
    patched: Any = prepare_model(tiny_model(family, **sizes)).train()
    install_layer_kernels(patched)
    hidden, expected = gradients(plain, rows)
    found_hidden, found = gradients(patched, rows)
    assert torch.allclose(found_hidden, hidden, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert (found[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-6, name


@pytest.mark.parametrize("family", MODULES)
def test_norms_gates_and_rotary_embedding_are_liger_s_and_nothing_else(family: Any) -> None:
    module = MODULES[family]
    before = dict(vars(module))
    model: Any = prepare_model(tiny_model(family))
    forward, head, names = model.forward, model.lm_head, list(model.state_dict())
    install_layer_kernels(model)
    layers = model.get_decoder().layers
    patched = {name for name, m in model.named_modules() if "forward" in vars(m)}
    expected = {"model.norm"}
    for i, layer in enumerate(layers):
        own = {"input_layernorm", "post_attention_layernorm", "mlp"}
        if hasattr(layer, "self_attn") and family != "llama":
            own |= {"self_attn.q_norm", "self_attn.k_norm"}
        expected |= {f"model.layers.{i}.{name}" for name in own}
    assert {name for name in patched if "linear_attn" not in name} == expected
    changed = {name for name, value in vars(module).items() if before.get(name) is not value}
    assert changed == (set() if family == "qwen3_5" else {"apply_rotary_pos_emb"})
    # our head and transformers' own forward stay
    assert (model.forward, model.lm_head) == (forward, head)
    assert list(model.state_dict()) == names


def test_another_family_is_refused() -> None:
    model: Any = tiny_model("qwen3")
    model.config.model_type = "gemma3_text"
    with pytest.raises(UserError, match="liger_kernels: not used for models of type 'gemma3_text'"):
        install_layer_kernels(model)


def test_the_cpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"liger_kernels.*the CPU"):
        check_layer_kernels(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"liger_kernels.*device is cpu"):
        Config(liger_kernels=True, device="cpu")
