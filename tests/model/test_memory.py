"""Switches that save memory: the gradients of a plain pass, and what they are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polaris_fast.config import Config, LoraConfig
from polaris_fast.engine import SingleEngine
from polaris_fast.engine.policy import Policy
from polaris_fast.model.load import prepare_model
from polaris_fast.model.lora import Adapters
from polaris_fast.model.memory import install_memory_savers, logits_chunk_bytes
from polaris_fast.model.tiny import tiny_model
from polaris_fast.packing import PackedBatch, pack_rows
from polaris_fast.types import UserError
from polaris_kernels import LossRows

SWITCHES: dict[str, dict[str, Any]] = {
    "checkpointing": {"gradient_checkpointing": True},
    "selective": {"gradient_checkpointing": "selective"},
    "tiles": {"mlp_tile_tokens": 16},
    "offload": {"gradient_checkpointing": True, "offload_activations": True},
    "all": {"gradient_checkpointing": True, "offload_activations": True, "mlp_tile_tokens": 16},
}


def gradients(family: Any, batch: PackedBatch, **settings: Any) -> dict[str, torch.Tensor]:
    config = Config(dtype="float32", **settings)
    model: Any = prepare_model(tiny_model(family))
    adapters = Adapters(model, config.lora) if config.lora.r else None
    install_memory_savers(model, config)
    engine = SingleEngine(model, config, config.loss_spec(), total_updates=1, adapters=adapters)
    rows = LossRows(
        row_of_token=batch.target_row,
        num_rows=batch.num_rows,
        advantages=torch.linspace(-1, 1, batch.num_rows),
        is_human=torch.zeros(batch.num_rows, dtype=torch.bool),
        denominator=100.0,
    )
    engine.backward(batch, rows)
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [0, 4], ids=["all weights", "adapters"])
@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("family", ["qwen3", "qwen3_5"])
def test_gradients_are_unchanged(
    family: str, switches: str, lora: int, make_rows: Callable[..., Any]
) -> None:
    batch = pack_rows(make_rows((40, 1, 25, 9)))
    torch.manual_seed(0)
    plain = gradients(family, batch, lora=LoraConfig(r=lora))
    torch.manual_seed(0)
    saved = gradients(family, batch, lora=LoraConfig(r=lora), **SWITCHES[switches])
    assert plain.keys() == saved.keys() and plain
    for name, expected in plain.items():
        assert torch.allclose(saved[name], expected, rtol=1e-5, atol=1e-7), name


class Products(TorchDispatchMode):
    """Counts matrix products of linear layers, and attention, while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().startswith(("aten::mm", "aten::_scaled_dot_product"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5"])
def test_selective_checkpointing_makes_no_product_again(
    family: str, make_rows: Callable[..., Any]
) -> None:
    batch = pack_rows(make_rows((40, 25)))
    counts = {}
    for kind in (False, "selective", True):
        with Products() as products:
            gradients(family, batch, gradient_checkpointing=kind)
        counts[kind] = products.count
    assert counts["selective"] == counts[False] < counts[True]


def test_an_mlp_never_sees_more_tokens_than_a_tile(make_rows: Callable[..., Any]) -> None:
    model: Any = prepare_model(tiny_model("qwen3"))
    seen: list[int] = []
    for layer in model.get_decoder().layers:
        layer.mlp.down_proj.register_forward_hook(
            lambda module, args, out: seen.append(args[0].shape[-2])
        )
    install_memory_savers(model, Config(mlp_tile_tokens=16))
    batch = pack_rows(make_rows((40, 7)))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            model(batch.input_ids[None])
    assert max(seen) == 16 and sum(seen) == 2 * 47 * len(model.get_decoder().layers)


def test_offloading_moves_every_layer_s_input(
    make_rows: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[torch.Tensor] = []
    real = torch.autograd.graph.save_on_cpu

    class Watched(real):  # type: ignore[misc, valid-type]
        def __init__(self, pin_memory: bool) -> None:
            assert not pin_memory  # no GPU takes part
            super().__init__(pin_memory)
            pack: Callable[[torch.Tensor], Any] = self.pack_hook  # type: ignore[has-type]

            def watched(tensor: torch.Tensor) -> Any:
                moved.append(tensor)
                return pack(tensor)

            self.pack_hook = watched

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Watched)
    batch = pack_rows(make_rows((40, 7)))
    gradients("qwen3", batch, gradient_checkpointing=True, offload_activations=True)
    inputs = [t for t in moved if tuple(t.shape) == (1, 47, 64)]
    assert len(inputs) >= 4
    # nothing as wide as an MLP's inside is kept at all
    assert max(t.shape[-1] for t in moved if t.dim() == 3) <= 64


def test_offloading_needs_checkpointing() -> None:
    with pytest.raises(ValueError, match=r"offload_activations.*gradient_checkpointing"):
        Config(offload_activations=True)


@pytest.mark.parametrize("other", [{"offload_activations": True}, {"mlp_tile_tokens": 16}])
def test_switches_that_work_against_each_other_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(other))}.*gradient_checkpointing"):
        Config(gradient_checkpointing="selective", **other)


@pytest.mark.parametrize(
    ("settings", "sizes", "device", "mib"),
    [
        ({}, (64, 1024), "cpu", 256),
        ({}, (256, 151_936), "cpu", 296.75),  # twice the weight gradient
        ({}, (4096, 248_320), "cpu", 512),
        ({}, (4096, 248_320), "cuda", 2048),
        ({"logits_chunk_mib": 64}, (4096, 248_320), "cuda", 64),
    ],
)
def test_a_chunk_of_logits_follows_the_head(
    settings: dict[str, Any], sizes: tuple[int, int], device: str, mib: float
) -> None:
    assert logits_chunk_bytes(Config(**settings), *sizes, device) == mib * 2**20


def test_the_head_gets_the_configured_chunk(
    make_rows: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = prepare_model(tiny_model("qwen3"))
    config = Config(logits_chunk_mib=3)
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden, **options: given.append(options))
    batch = pack_rows(make_rows((40, 7)))
    Policy(model, config, config.loss_spec())(batch, None)  # type: ignore[arg-type]
    assert given[0]["chunk_bytes"] == 3 * 2**20


def test_a_model_without_a_plain_mlp_is_refused() -> None:
    model: Any = tiny_model("qwen3")
    model.get_decoder().layers[0].mlp = torch.nn.Identity()
    with pytest.raises(UserError, match="mlp_tile_tokens"):
        install_memory_savers(model, Config(mlp_tile_tokens=16))
