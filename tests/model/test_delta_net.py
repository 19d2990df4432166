"""The hooked delta-net layers outside packed rows: generation must not notice them."""

import copy

import pytest
import torch
from transformers import DynamicCache

from polaris_fast.model.delta_net import PackedDeltaNet, hook_delta_net, unhook_delta_net
from polaris_fast.model.packed import install_packing, packed_hidden_states
from polaris_fast.model.tiny import tiny_model
from polaris_fast.packing import pack_rows

FAMILIES = ("qwen3_5", "qwen3", "llama")


def generate(model, ids, mask, **options):
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0} | options
    return model.generate(input_ids=ids, attention_mask=mask, **settings)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_the_same_with_hooks(family, options):
    plain = tiny_model(family, initializer_range=0.15)
    hooked = install_packing(copy.deepcopy(plain))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 1024, (5, 11), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(4):  # left padding of 0, 2, 4, 6 and 0 tokens
        mask[row, : 2 * row] = 0
    assert torch.equal(
        generate(hooked, ids, mask, **options), generate(plain, ids, mask, **options)
    )


def test_cached_steps_match_the_plain_model():
    plain = tiny_model("qwen3_5", initializer_range=0.15)
    hooked = install_packing(copy.deepcopy(plain))
    ids = torch.randint(1024, (3, 40), generator=torch.Generator().manual_seed(2))
    outs = []
    for model in (plain, hooked):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            steps = [model(ids[:, :2], past_key_values=cache, use_cache=True).logits]
            for t in range(2, 40):
                steps.append(model(ids[:, t : t + 1], past_key_values=cache).logits)
        outs.append((torch.cat(steps, dim=1), cache.layers[0]))
    (expected, plain_cache), (ours, hooked_cache) = outs
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    for name in ("conv_states", "recurrent_states"):
        torch.testing.assert_close(
            getattr(hooked_cache, name)[0], getattr(plain_cache, name)[0], rtol=1e-4, atol=1e-5
        )


def test_step_with_gradients_on_takes_the_plain_path():
    model = install_packing(tiny_model("qwen3_5"))
    ids = torch.tensor([[3, 4, 5]])
    outs = []
    for gradients in (False, True):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids, past_key_values=cache)
        with torch.set_grad_enabled(gradients):
            outs.append(model(ids[:, :1], past_key_values=cache).logits)
    assert outs[1].requires_grad
    torch.testing.assert_close(outs[1].detach(), outs[0])


def test_hooks_change_no_name_and_can_be_undone():
    model = tiny_model("qwen3_5")
    names = list(model.state_dict())
    classes = [type(m) for m in model.modules()]
    assert hook_delta_net(model) == 3
    assert hook_delta_net(model) == 0
    assert list(model.state_dict()) == names
    layers = [m for m in model.modules() if isinstance(m, PackedDeltaNet)]
    assert len(layers) == 3
    assert type(copy.deepcopy(layers[0])) is type(layers[0])
    assert unhook_delta_net(model) == 3
    assert [type(m) for m in model.modules()] == classes


def test_only_the_given_model_is_hooked():
    hooked, other = tiny_model("qwen3_5"), tiny_model("qwen3_5")
    install_packing(hooked)
    assert not any(isinstance(m, PackedDeltaNet) for m in other.modules())


def test_packed_rows_refuse_a_cache(make_rows):
    model = install_packing(tiny_model("qwen3_5"))
    batch = pack_rows(make_rows((4, 5)))
    with pytest.raises(ValueError, match="use_cache=False"):
        model.model(
            batch.input_ids[None],
            past_key_values=DynamicCache(config=model.config),
            packed_layout=batch.layout,
        )


def test_bf16_packed_rows_match_rows_alone(make_rows):
    model = install_packing(tiny_model("qwen3_5", dtype=torch.bfloat16))
    rows = make_rows((9, 1, 40))
    with torch.no_grad():
        together = packed_hidden_states(model, pack_rows(rows))
        alone = torch.cat([packed_hidden_states(model, pack_rows([row])) for row in rows])
    assert together.dtype == torch.bfloat16
    torch.testing.assert_close(together, alone, rtol=2e-2, atol=2e-2)
