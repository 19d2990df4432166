"""The start-up probe passes exact models and refuses those that leak, through any one door."""

import pytest
import torch
from torch import nn

from polaris_fast.model import delta_net, parity
from polaris_fast.model.delta_net import PackedConv1d, unhook_delta_net
from polaris_fast.model.layout import PackedLayout
from polaris_fast.model.packed import install_packing
from polaris_fast.model.parity import PackingLeak, ParityReport, check_packing
from polaris_fast.model.tiny import tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["qwen3_5", "qwen3", "llama"])
def test_exact_models_pass(family, dtype):
    model = install_packing(tiny_model(family, dtype=dtype, initializer_range=0.1))
    report = check_packing(model)
    assert report.passed
    # eager attention in fp32 is the reference: bf16 kernels round by about the tolerance
    assert report.hidden <= (1.0 if dtype == torch.float32 else 1.1) * report.tolerance


def test_the_probe_leaves_the_model_as_it_was():
    model = install_packing(tiny_model("qwen3_5")).train()
    check_packing(model)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_where_transformers_runs_on_wrong_kernels_it_is_no_reference(monkeypatch, dtype):
    """fla is installed, and wrong on this device: transformers would call it all the same."""
    model = install_packing(tiny_model("qwen3_5", dtype=dtype, initializer_range=0.1))
    monkeypatch.setattr(parity, "find_spec", lambda name: object())
    monkeypatch.setattr(parity, "fla_is_right", lambda device: False)
    monkeypatch.setattr(parity, "_plain", lambda *x: pytest.fail("fla was called"))
    assert check_packing(model).passed

    def leaky(q, k, v, g, beta, layout):
        return rule(q, k, v, g, beta, PackedLayout.from_lengths((layout.num_tokens,)))

    rule = delta_net.packed_gated_delta_rule
    monkeypatch.setattr(delta_net, "packed_gated_delta_rule", leaky)
    with pytest.raises(PackingLeak):
        check_packing(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unhooked_delta_net_is_refused(dtype):
    model = install_packing(tiny_model("qwen3_5", dtype=dtype))
    unhook_delta_net(model)
    with pytest.raises(PackingLeak, match=r"Qwen3_5ForCausalLM .*differ from rows alone by 0\.\d+"):
        check_packing(model)


def test_a_leak_through_the_convolution_alone_is_refused(monkeypatch):
    model = install_packing(tiny_model("qwen3_5"))

    def leaky(self, x, layout=None):
        y = nn.Conv1d.forward(self, x if layout is None else x.T[None])
        return y if layout is None else y[0, :, : len(x)].T

    monkeypatch.setattr(PackedConv1d, "forward", leaky)
    with pytest.raises(PackingLeak):
        check_packing(model)


def test_a_leak_through_the_state_alone_is_refused(monkeypatch):
    def leaky(q, k, v, g, beta, layout):
        return rule(q, k, v, g, beta, PackedLayout.from_lengths((layout.num_tokens,)))

    rule = delta_net.packed_gated_delta_rule
    monkeypatch.setattr(delta_net, "packed_gated_delta_rule", leaky)
    with pytest.raises(PackingLeak):
        check_packing(install_packing(tiny_model("qwen3_5")))


def test_attention_that_ignores_boundaries_is_refused(monkeypatch):
    from polaris_fast.model import packed

    model = install_packing(tiny_model("llama"))
    model.set_attn_implementation("sdpa")
    monkeypatch.setattr(packed, "ATTENTION_NAME", "sdpa")  # one mask for nobody, and no layout read
    with pytest.raises(PackingLeak):
        check_packing(model)


def test_a_model_that_takes_no_layout_is_refused(monkeypatch):
    model = install_packing(tiny_model("llama"))
    body_type = type(model.model)

    def narrow(self, inputs_embeds, position_ids=None, attention_mask=None, use_cache=False):
        raise AssertionError("not reached")

    monkeypatch.setattr(body_type, "forward", narrow)
    with pytest.raises(PackingLeak, match="does not take packed rows"):
        check_packing(model)


def test_nan_never_passes():
    nan = float("nan")
    assert not ParityReport(nan, 0.0, 0.0, 0.0, 1e-4).passed
    assert not ParityReport(0.0, nan, 0.0, 0.0, 1e-4).passed
    assert not ParityReport(0.0, 0.0, nan, 0.0, 1e-4).passed
    assert not ParityReport(0.0, 0.0, 0.0, 2e-3, 1e-4).passed  # kernels disagree with the model
    assert ParityReport(0.0, 0.0, 0.0, 0.0, 1e-4).passed
