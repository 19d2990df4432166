"""fla's kernels are taken only after they have proven right on the device."""

import sys
import types

import pytest
import torch

from polaris_fast.model import delta_fla, delta_net
from polaris_fast.model.delta_fla import TOLERANCE, fla_is_right, probe
from polaris_fast.model.delta_rule import packed_gated_delta_rule

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget(monkeypatch, request):
    """No answer is kept, and the CPU stands in for a GPU without known faults."""
    if "known" not in request.function.__name__:
        monkeypatch.setattr(delta_fla, "known_fault", lambda device: None)
    fla_is_right.cache_clear()
    yield
    fla_is_right.cache_clear()


class WrongBackward(torch.autograd.Function):
    """Leaves the value alone and spoils the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.1


def test_a_bf16_rule_of_the_same_maths_passes():
    errors = probe(packed_gated_delta_rule, CPU)
    assert list(errors) == ["output", "d q", "d k", "d v", "d g", "d beta"]
    assert 0 < max(errors.values()) < TOLERANCE


@pytest.mark.parametrize("which", range(5))
def test_a_wrong_gradient_is_found_and_named(which, monkeypatch, caplog):
    def wrong(*inputs):
        *tensors, layout = inputs
        tensors[which] = WrongBackward.apply(tensors[which])
        return packed_gated_delta_rule(*tensors, layout)

    monkeypatch.setattr(delta_fla, "fla_gated_delta_rule", wrong)
    with caplog.at_level("WARNING", logger="polaris_fast"), torch.no_grad():
        assert not fla_is_right(CPU)
        assert not fla_is_right(CPU)
    (record,) = caplog.records
    assert f"relative error of {delta_fla._NAMES[which + 1]} " in record.message


def test_nan_and_failures_are_wrong_too(monkeypatch, caplog):
    monkeypatch.setattr(
        delta_fla, "fla_gated_delta_rule", lambda *x: packed_gated_delta_rule(*x) * torch.nan
    )
    assert not fla_is_right(CPU)
    fla_is_right.cache_clear()

    def fails(*inputs):
        raise RuntimeError("PTX of another age")

    monkeypatch.setattr(delta_fla, "fla_gated_delta_rule", fails)
    assert not fla_is_right(CPU)
    assert "PTX of another age" in caplog.text


@pytest.mark.parametrize(
    ("capability", "triton", "tilelang", "is_tried"),
    [
        ((9, 0), "3.6.0", False, False),
        ((9, 0), "3.7.0", False, False),
        ((9, 0), "3.7.1", False, True),
        ((9, 0), "3.3.1", False, True),
        ((9, 0), "3.6.0", True, True),
        ((10, 0), "3.6.0", False, True),
    ],
)
def test_a_known_fault_is_not_tried(monkeypatch, caplog, capability, triton, tilelang, is_tried):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(delta_fla.metadata, "version", {"triton": triton}.__getitem__)
    monkeypatch.setattr(delta_fla, "find_spec", lambda name: object() if tilelang else None)
    tried = []
    monkeypatch.setattr(delta_fla, "rule_is_right", lambda *asked: tried.append(asked) or True)
    assert fla_is_right(torch.device("cuda", 0)) == bool(tried) == is_tried
    assert ("wrong on Hopper with Triton" in caplog.text) != is_tried


def test_a_cpu_is_known_not_to_run_it():
    assert not fla_is_right(CPU)


def test_a_device_that_fails_keeps_torch(monkeypatch):
    monkeypatch.setattr(delta_net, "find_spec", lambda name: object())
    cuda = torch.device("cuda", 0)
    for right, backend in ((True, "fla"), (False, "torch")):
        monkeypatch.setattr(delta_net, "fla_is_right", lambda device, right=right: right)
        monkeypatch.setattr(delta_net, "triton_is_right", lambda device: False)
        assert delta_net.delta_backend(cuda) == backend
    assert delta_net.delta_backend(CPU) == "torch"


def test_fla_gets_the_arguments_it_documents(monkeypatch):
    seen = {}

    def chunk_gated_delta_rule(q, k, v, g, beta, **options):
        seen.update(options, shapes=[tuple(x.shape) for x in (q, k, v, g, beta)])
        return v, None

    module = types.ModuleType("fla.ops.gated_delta_rule")
    module.chunk_gated_delta_rule = chunk_gated_delta_rule
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", module)
    layout = delta_fla.PackedLayout.from_lengths((2, 3))
    q = torch.randn(5, 2, 8)
    v = torch.randn(5, 4, 8)
    gates = torch.randn(5, 4)
    assert delta_fla.fla_gated_delta_rule(q, q, v, gates, gates, layout).equal(v)
    assert seen["use_qk_l2norm_in_kernel"] and seen["cu_seqlens"].tolist() == [0, 2, 5]
    assert seen["cu_seqlens"].dtype == torch.int64
    assert seen["shapes"] == [(1, 5, 4, 8)] * 3 + [(1, 5, 4)] * 2
