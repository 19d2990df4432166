"""Packed rows through whole models: the same as each row alone, values and gradients."""

import copy

import pytest
import torch

from polaris_fast.model.packed import install_packing, packed_hidden_states
from polaris_fast.model.tiny import tiny_model
from polaris_fast.packing import pack_rows

FAMILIES = ("qwen3_5", "qwen3", "llama")


def relative(ours, reference):
    return float((ours - reference).abs().max() / reference.abs().max())


def remember(model):
    """Slow decays: half of the random ones forget at once, which leaves the gates' gradients to
    rounding in the plain fp32 forward, and hides leaks."""
    for layer in model.modules():
        if hasattr(layer, "A_log"):
            layer.A_log.data.copy_(torch.linspace(0.02, 0.3, len(layer.A_log)).log())
    return model


def packed_logits(model, rows):
    return model.lm_head(packed_hidden_states(model, pack_rows(rows)))


def plain_logits(model, rows):
    """transformers' own forward, one row at a time."""
    ids = [torch.tensor([[*row.prompt_ids, *row.completion_ids]]) for row in rows]
    return torch.cat([model(input_ids=row, use_cache=False).logits[0] for row in ids])


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_match_rows_alone(family, tied, lengths, make_rows):
    # weights large enough that every layer matters
    plain = remember(tiny_model(family, tie_word_embeddings=tied, initializer_range=0.1))
    packed = install_packing(copy.deepcopy(plain))
    rows = make_rows(lengths)
    expected, ours = plain_logits(plain, rows), packed_logits(packed, rows)
    assert relative(ours.detach(), expected.detach()) < 1e-5
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    upstream /= len(expected)
    expected.backward(upstream)
    ours.backward(upstream)
    for (name, want), got in zip(plain.named_parameters(), packed.parameters(), strict=True):
        assert want.grad is not None and got.grad is not None, name
        # two numbers, each a sum over all tokens that nearly cancels: rounding weighs more
        limit = 1e-4 if name.endswith(("A_log", "dt_bias")) else 1e-5
        assert relative(got.grad, want.grad) < limit, name


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_other_attention_implementations_keep_rows_apart(implementation, make_rows):
    plain = tiny_model("qwen3_5")
    packed = install_packing(copy.deepcopy(plain), attn_implementation=implementation)
    rows = make_rows((9, 1, 20))
    with torch.no_grad():
        assert relative(packed_logits(packed, rows), plain_logits(plain, rows)) < 1e-5


def test_hidden_states_are_the_ones_after_the_final_norm(make_rows):
    model = install_packing(tiny_model("qwen3"))
    (row,) = make_rows((8,))
    with torch.no_grad():
        ours = packed_hidden_states(model, pack_rows([row]))
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
        expected = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_gives_the_same_gradients(family, make_rows):
    rows = make_rows((5, 40, 1, 12))
    grads = []
    for checkpointing in (False, True):
        model = install_packing(tiny_model(family)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        packed_logits(model, rows).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_sliding_windows_hold_inside_rows(make_rows):
    sizes = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}
    plain = tiny_model("qwen3", **sizes)
    assert "sliding_attention" in plain.config.layer_types
    packed = install_packing(copy.deepcopy(plain))
    rows = make_rows((30, 3, 70))
    with torch.no_grad():
        assert relative(packed_logits(packed, rows), plain_logits(plain, rows)) < 1e-5


def test_bitwise_repeatable(make_rows):
    model = install_packing(tiny_model("qwen3_5"))
    rows = make_rows((30, 3, 70))
    with torch.no_grad():
        assert torch.equal(packed_logits(model, rows), packed_logits(model, rows))


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_bf16_is_near_the_cpu(family, lengths, make_rows):
    cpu = install_packing(tiny_model(family))
    cuda = copy.deepcopy(cpu).to("cuda", torch.bfloat16)
    rows = make_rows(lengths)
    with torch.no_grad():
        ours = packed_hidden_states(cuda, pack_rows(rows, "cuda")).cpu().float()
        expected = packed_hidden_states(cpu, pack_rows(rows))
    assert relative(ours, expected) < 5e-2
