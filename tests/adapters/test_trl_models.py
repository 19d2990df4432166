"""Models whose heads and forwards differ: TRL's forward stays, so each keeps what is its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polaris_kernels.adapters.trl_head import HeadSwitch

from .trl_rig import gradient_difference

trl_utils = pytest.importorskip("trl.trainer.utils")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

B, L, V, PATCH = 2, 9, 60, 4
IMAGE, VISION_START = 58, 57
TEXT = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3,
}  # fmt: skip
QWEN_VL = {
    "image_token_id": IMAGE, "video_token_id": 59, "vision_start_token_id": VISION_START,
    "text_config": TEXT | {
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]},
    },
    "vision_config": {
        "depth": 1, "hidden_size": 32, "embed_dim": 32, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 2, "in_channels": 3, "out_hidden_size": 32, "intermediate_size": 32,
        "fullatt_block_indexes": [0],
    },
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "capped logits": ("Gemma2", TEXT | {"final_logit_softcapping": 3.0, "sliding_window": 8}),
    "scaled logits": ("Cohere", TEXT | {"logit_scale": 0.25}),
    "divided logits": ("Granite", TEXT | {"logits_scaling": 3.0}),
    "head with a bias": ("Phi", TEXT),
    "mixture of experts": (
        "Qwen3Moe",
        TEXT | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                "output_router_logits": True, "router_aux_loss_coef": 0.1},
    ),
    "images": ("Qwen2_5_VL", QWEN_VL),
}  # fmt: skip


def build(name: str) -> nn.Module:
    family, sizes = MODELS[name]
    torch.manual_seed(0)
    suffix = "ForConditionalGeneration" if family.endswith("VL") else "ForCausalLM"
    model = getattr(transformers, family + suffix)(
        getattr(transformers, family + "Config")(**copy.deepcopy(sizes))
    )
    head = model.get_output_embeddings()
    if head.bias is not None:
        nn.init.normal_(head.bias)
    trl_utils.add_fused_lm_head(model, temperature=0.8, outputs=("log_probs", "entropy"))
    return model.train()


def inputs_of(name: str) -> dict[str, Tensor]:
    """Rows padded on the left; with images, one of 2 x 2 merged patches in the first row."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (B, L), generator=g)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    found = {"input_ids": ids, "attention_mask": mask}
    if name == "images":
        ids[:, 0:6] = torch.tensor([VISION_START, *[IMAGE] * 4, 5])
        mask[:] = 1
        found["image_grid_thw"] = torch.tensor([[1, 4, 4]] * B)
        found["pixel_values"] = torch.randn(B * 16, 3 * 2 * PATCH * PATCH, generator=g)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-3] = -100
    labels[0, -1] = -100
    return found | {"labels": labels}


def outcome(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    model.zero_grad()
    out = model(**inputs, fused_lm_head=True)
    weights = torch.linspace(-1.0, 1.0, out.log_probs.numel()).view_as(out.log_probs)
    total = (out.log_probs * weights).sum() + (out.entropy * weights.flip(0)).sum()
    if out.aux_loss is not None:
        total = total + out.aux_loss
    total.backward()
    return out, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_entropies_and_gradients_agree(name: str) -> None:
    model, inputs = build(name), inputs_of(name)
    theirs, their_gradients = outcome(model, inputs)
    switch = HeadSwitch(model, {})
    switch.on()
    ours, gradients = outcome(model, inputs)
    for field in ("log_probs", "entropy", "label_mask", "aux_loss", "loss"):
        a, b = getattr(ours, field), getattr(theirs, field)
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert (ours.aux_loss is not None) == (name == "mixture of experts")
    assert gradient_difference(gradients, their_gradients) <= 1e-5
    assert any("visual" in n for n in gradients) == (name == "images")
    switch.off()
    assert torch.equal(outcome(model, inputs)[0].log_probs, theirs.log_probs)


def test_the_logits_that_each_model_makes_are_the_ones_that_are_scored() -> None:
    """Against the model's own forward, so that a cap or scale that both heads miss would show."""
    for name in MODELS:
        model, inputs = build(name), inputs_of(name)
        switch = HeadSwitch(model, {})
        switch.on()
        labels = inputs.pop("labels")
        with torch.no_grad():
            ours = model(**inputs, labels=labels, fused_lm_head=True).log_probs
            logits = model(**inputs).logits[:, :-1] / 0.8
        exact = torch.log_softmax(logits.double(), -1)
        exact = exact.gather(-1, labels[:, 1:, None].clamp(min=0))[..., 0]
        exact = exact.masked_fill(labels[:, 1:] == -100, 0.0).float()
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4, msg=lambda m: f"{name}: {m}")  # noqa: B023
