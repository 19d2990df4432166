"""Kernels of a run: right ones only, the fastest of them, or the one that was asked for."""

import pytest
import torch

from polaris_fast.model import attention, delta_net, measured_kernels
from polaris_fast.model.kernel_choice import choose, chosen, median_times
from polaris_fast.model.layout import PackedLayout
from polaris_fast.model.measured_kernels import (
    Choice,
    Shapes,
    check_asked,
    measure_kernels,
    right_attention,
    use_kernels,
)
from polaris_fast.model.tiny import tiny_model
from polaris_fast.types import UserError

CPU, BF16 = torch.device("cpu"), torch.bfloat16
AUTO = {"attention": "auto", "delta_net": "auto"}
SHAPES = Shapes((4, 2, 8), (2, 4, 8, 8))


@pytest.fixture
def three_kernels(monkeypatch):
    """Stand-ins for a GPU's kernels: all of them sdpa, or the torch rule."""
    plain = attention.varlen_attention
    monkeypatch.setattr(
        attention, "attention_backends", lambda *x: ("flash_attn", "torch_varlen", "grouped_sdpa")
    )
    monkeypatch.setattr(
        attention,
        "varlen_attention",
        lambda *x, backend=None, **rest: plain(*x, backend="grouped_sdpa", **rest),
    )
    return plain


def by_name(slow: dict[str, float]):
    """A clock that knows what each candidate takes."""

    def clock(call):
        call()
        rule = call.args[0]
        return slow[rule.keywords["backend"]]

    return clock


def test_the_fastest_right_attention_wins_and_the_log_tells(three_kernels, caplog):
    clock = by_name({"flash_attn": 3.0, "torch_varlen": 1.0, "grouped_sdpa": 9.0})
    found = measure_kernels(Shapes((4, 2, 8), None), CPU, BF16, 70, asked=AUTO, clock=clock)
    assert found == {
        "attention": Choice(
            "torch_varlen", {"flash_attn": 3.0, "torch_varlen": 1.0, "grouped_sdpa": 9.0}
        )
    }
    with caplog.at_level("INFO", logger="polaris_fast"):
        use_kernels(found)
    assert "torch_varlen (flash_attn 3.00 ms, grouped_sdpa 9.00 ms" in caplog.text
    assert chosen("attention") == "torch_varlen"
    assert attention.attention_backend(torch.device("cuda"), BF16) == "torch_varlen"
    assert attention.attention_backend(CPU, BF16) == "flash_attn"  # the stand-in's first


def test_wrong_and_failing_kernels_are_never_timed(three_kernels, monkeypatch, caplog):
    plain = three_kernels

    def kernels(*x, backend=None, **rest):
        if backend == "flash_attn":
            raise RuntimeError("no kernel image")
        out = plain(*x, backend="grouped_sdpa", **rest)
        return out * 1.2 if backend == "torch_varlen" else out

    monkeypatch.setattr(attention, "varlen_attention", kernels)
    assert right_attention(CPU, BF16) == ("grouped_sdpa",)
    assert "flash_attn fails" in caplog.text and "torch_varlen is wrong" in caplog.text
    found = measure_kernels(
        Shapes((4, 2, 8), None), CPU, BF16, 70, asked=AUTO, clock=lambda call: pytest.fail("timed")
    )
    assert found["attention"] == Choice("grouped_sdpa")
    with pytest.raises(UserError, match=r"packing.attention: flash_attn .* grouped_sdpa"):
        measure_kernels(SHAPES, CPU, BF16, 70, asked=AUTO | {"attention": "flash_attn"})


def test_a_kernel_that_is_asked_for_is_not_timed(three_kernels):
    found = measure_kernels(
        SHAPES, CPU, BF16, 70, asked={"attention": "flash_attn", "delta_net": "torch"},
        clock=lambda call: pytest.fail("timed"),
    )  # fmt: skip
    assert (found["attention"].kernel, found["delta_net"].kernel) == ("flash_attn", "torch")


@pytest.mark.parametrize("name", ["fla", "triton"])
def test_the_cpu_refuses_kernels_of_gpus(name):
    asked = AUTO | {"delta_net": name}
    with pytest.raises(UserError, match=f"packing.delta_net: {name} runs on a GPU, .* or torch"):
        check_asked(asked, CPU)
    check_asked(asked, torch.device("cuda"))
    with pytest.raises(UserError, match=f"packing.delta_net: {name} .* there are torch"):
        measure_kernels(SHAPES, CPU, BF16, 70, asked=AUTO | {"delta_net": name})


class OutOfResources(Exception):
    """Triton's errors are no RuntimeErrors."""


@pytest.mark.parametrize("kind", [RuntimeError, OutOfResources])
def test_the_first_round_and_failed_calls_do_not_count(kind, caplog):
    def late():
        raise kind("out of memory")

    times = iter([100.0, 5.0, 1.0, 4.0, 3.0, 2.0])

    def clock(call):
        return call() or next(times)

    assert median_times({"late": late, "fine": lambda: None}, clock) == {"fine": 3.0}
    assert caplog.messages == ["late fails on the run's longest row: out of memory"]


def test_a_row_that_no_kernel_can_take_is_refused(three_kernels):
    def clock(call):
        raise RuntimeError("out of memory")

    with pytest.raises(UserError, match=r"packing.attention: none of flash_attn, .* 70 tokens"):
        measure_kernels(SHAPES, CPU, BF16, 70, asked=AUTO, clock=clock)


def test_delta_kernels_come_in_order_and_only_when_right(monkeypatch):
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(delta_net, "find_spec", lambda name: object())
    for fla, own, expected in (
        (True, True, ("fla", "triton", "torch")),
        (False, True, ("triton", "torch")),
        (False, False, ("torch",)),
    ):
        monkeypatch.setattr(delta_net, "fla_is_right", lambda device, right=fla: right)
        monkeypatch.setattr(delta_net, "triton_is_right", lambda device, right=own: right)
        assert delta_net.right_delta_backends(cuda) == expected
        assert delta_net.delta_backend(cuda) == expected[0]
    choose("delta_net", "triton")
    assert delta_net.delta_backend(cuda) == "triton"
    assert delta_net.delta_backend(CPU) == "torch"


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3", "llama"])
def test_shapes_are_read_from_the_model(family):
    config = tiny_model(family).get_decoder().config
    shapes = Shapes.of(config)
    assert shapes.attention[0] == config.num_attention_heads
    assert (shapes.delta_net is not None) == (family == "qwen3_5")


def test_inputs_of_a_trial_fit_the_rules():
    layout = PackedLayout.from_lengths((9,))
    inputs = measured_kernels.delta_inputs(SHAPES.delta_net, 9, CPU, BF16)
    made = measured_kernels.with_gradients(delta_net.delta_rule("torch"), inputs, layout)
    assert [x.shape for x in made[1:]] == [x.shape for x in inputs]
    assert all(x.isfinite().all() for x in made)
