"""Switches that save memory: the gradients of a plain pass, and what they are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from polaris_fast.config import Config, LoraConfig
from polaris_fast.engine import SingleEngine
from polaris_fast.model.load import prepare_model
from polaris_fast.model.lora import Adapters
from polaris_fast.model.memory import install_memory_savers
from polaris_fast.model.tiny import tiny_model
from polaris_fast.packing import PackedBatch, pack_rows
from polaris_fast.types import UserError
from polaris_kernels import LossRows

SWITCHES: dict[str, dict[str, Any]] = {
    "checkpointing": {"gradient_checkpointing": True},
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


def test_a_model_without_a_plain_mlp_is_refused() -> None:
    model: Any = tiny_model("qwen3")
    model.get_decoder().layers[0].mlp = torch.nn.Identity()
    with pytest.raises(UserError, match="mlp_tile_tokens"):
        install_memory_savers(model, Config(mlp_tile_tokens=16))
