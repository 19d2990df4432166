"""FusedHead: an nn.Linear in every respect but what it does with targets."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from polaris_kernels import (
    FusedHead,
    LossRows,
    LossSpec,
    linear_grpo_loss,
    linear_kl,
    linear_kl_loss,
    linear_logps,
)

pytestmark = pytest.mark.usefixtures("cpu_backend")


@pytest.fixture
def head():
    torch.manual_seed(0)
    return FusedHead.from_linear(nn.Linear(8, 31))


def inputs(N=12):
    torch.manual_seed(1)
    rows = LossRows(
        row_of_token=torch.arange(N, dtype=torch.int32) // 4,
        num_rows=3,
        advantages=torch.tensor([1.0, -1.0, 0.5]),
        denominator=float(N),
    )
    return torch.randn(N, 8, requires_grad=True), torch.randint(31, (N,)), rows


def test_without_targets_it_is_a_linear_layer():
    linear = nn.Linear(8, 31)
    head = FusedHead.from_linear(linear)
    x = torch.randn(2, 3, 8)
    assert torch.equal(head(x), linear(x))
    assert list(head.state_dict()) == ["weight", "bias"]
    assert isinstance(head, nn.Linear)


def test_from_linear_shares_parameters_and_keeps_tied_weights(head):
    embedding = nn.Embedding(31, 8)
    linear = nn.Linear(8, 31, bias=False)
    linear.weight = embedding.weight
    tied = FusedHead.from_linear(linear)
    assert tied.weight is embedding.weight and tied.bias is None
    hidden = embedding(torch.arange(12)).detach().requires_grad_()
    _, targets, rows = inputs()
    tied(hidden, targets=targets, rows=rows).loss.backward()
    assert embedding.weight.grad is tied.weight.grad and tied.weight.grad.abs().sum() > 0


def test_from_linear_keeps_mode_dtype_and_random_state():
    linear = nn.Linear(8, 31, dtype=torch.bfloat16).eval()
    state = torch.get_rng_state()
    head = FusedHead.from_linear(linear)
    assert torch.equal(state, torch.get_rng_state())
    assert not head.training and head.weight.dtype == torch.bfloat16
    assert FusedHead.from_linear(head).weight is linear.weight


def test_layers_that_are_more_than_their_weight_are_refused():
    class LowRank(nn.Linear):
        pass

    with pytest.raises(ValueError, match=r"LowRank, not a plain nn.Linear; merge or remove"):
        FusedHead.from_linear(LowRank(8, 31))
    wrapped = nn.utils.parametrizations.weight_norm(nn.Linear(8, 31))
    with pytest.raises(ValueError, match=r"not a plain nn.Linear"):
        FusedHead.from_linear(wrapped)


def test_targets_alone_give_log_probs(head):
    hidden, targets, _ = inputs()
    found = head(hidden, targets=targets, temperature=0.7, return_entropy=True)
    expected = linear_logps(
        hidden, head.weight, targets, bias=head.bias, temperature=0.7, return_entropy=True
    )
    assert torch.equal(found.logps, expected.logps)
    assert torch.equal(found.entropy, expected.entropy)
    assert torch.equal(head.logps(hidden, targets=targets, temperature=0.7).logps, found.logps)


def test_rows_give_the_loss(head):
    hidden, targets, rows = inputs()
    out = head(hidden, targets=targets, rows=rows, spec=LossSpec(), temperature=0.7)
    expected = linear_grpo_loss(
        hidden, head.weight, targets, rows=rows, bias=head.bias, temperature=0.7
    )
    assert torch.equal(out.loss, expected.loss)
    out.loss.backward()
    assert head.weight.grad is not None and head.bias.grad is not None
    assert hidden.grad is not None


@pytest.mark.parametrize("with_rows", [True, False], ids=["loss", "per_token"])
def test_reference_hidden_states_give_the_exact_kl(head, with_rows):
    hidden, _, rows = inputs()
    ref_hidden, ref_weight = torch.randn(12, 5), torch.randn(31, 5)
    options = {"rows": rows, "spec": LossSpec()} if with_rows else {}
    given = dict(ref_bias=torch.randn(31), temperature=0.7, **options)
    found = head(hidden, ref_hidden=ref_hidden, ref_weight=ref_weight, **given)
    function = linear_kl_loss if with_rows else linear_kl
    expected = function(hidden, head.weight, ref_hidden, ref_weight, bias=head.bias, **given)
    found, expected = (x.loss if with_rows else x for x in (found, expected))
    assert torch.equal(found, expected) and found.abs().sum() > 0
    found.sum().backward()
    assert head.weight.grad is not None and head.bias.grad is not None


def test_a_reference_without_a_head_ends_in_this_one(head):
    hidden, _, _ = inputs()
    kl = head(hidden, ref_hidden=hidden.detach() + 0.5)
    expected = linear_kl(
        hidden, head.weight, hidden.detach() + 0.5, head.weight, bias=head.bias, ref_bias=head.bias
    )
    assert torch.equal(kl, expected)
    assert (head(hidden, ref_hidden=hidden) == 0).all()


def test_targets_have_no_place_in_the_exact_kl(head):
    hidden, targets, _ = inputs()
    with pytest.raises(ValueError, match="targets and ref_hidden given together"):
        head(hidden, targets=targets, ref_hidden=hidden)


def test_log_probs_go_through_the_module_hooks(head):
    hidden, targets, rows = inputs()
    calls = []
    head.register_forward_pre_hook(lambda *_: calls.append("before"))
    head.register_forward_hook(lambda *_: calls.append("after"))
    head.logps(hidden, targets=targets)
    head(hidden, targets=targets, rows=rows)
    assert calls == ["before", "after"] * 2


def test_full_backward_hooks_find_the_loss(head):
    hidden, targets, rows = inputs()
    seen = []
    head.register_full_backward_pre_hook(lambda module, grads: seen.append(len(grads)))
    head(hidden, targets=targets, rows=rows).loss.backward()
    assert seen


def test_accumulation_adds_up(head):
    hidden, targets, rows = inputs()
    head(hidden, targets=targets, rows=rows).loss.backward()
    once = head.weight.grad.clone()
    head(hidden, targets=targets, rows=rows).loss.backward()
    assert torch.allclose(head.weight.grad, 2 * once)


def test_a_frozen_head_passes_gradient_to_hidden_only(head):
    head.requires_grad_(False)
    hidden, targets, rows = inputs()
    head(hidden, targets=targets, rows=rows).loss.backward()
    assert hidden.grad.abs().sum() > 0 and head.weight.grad is None


def test_options_without_targets_are_refused(head):
    hidden, _, rows = inputs()
    with pytest.raises(ValueError, match="rows, temperature given without targets"):
        head(hidden, rows=rows, temperature=0.5)


def test_unknown_options_are_refused(head):
    hidden, targets, _ = inputs()
    with pytest.raises(TypeError, match="temprature"):
        head(hidden, targets=targets, temprature=0.5)


@pytest.fixture
def one_rank_mesh():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
@pytest.mark.parametrize("what", ["loss", "log_probs", "kl_loss", "kl"])
def test_fsdp2_gathers_the_weight_for_forward_and_backward(head, one_rank_mesh, what):
    def scalar(module, hidden, targets, rows):
        if what == "loss":
            return module(hidden, targets=targets, rows=rows).loss
        if what == "log_probs":
            return module.logps(hidden, targets=targets).logps.sum()
        ref_hidden = hidden.detach() + 0.5
        if what == "kl_loss":
            return module(hidden, ref_hidden=ref_hidden, rows=rows).loss
        return module(hidden, ref_hidden=ref_hidden).sum()

    alone = FusedHead(8, 31)
    alone.load_state_dict(head.state_dict())
    fully_shard(head, mesh=one_rank_mesh, reshard_after_forward=True)
    hidden, targets, rows = inputs()
    scalar(head, hidden, targets, rows).backward()
    same = hidden.detach().clone().requires_grad_()
    scalar(alone, same, targets, rows).backward()
    assert torch.equal(head.weight.grad.full_tensor(), alone.weight.grad)
    assert torch.equal(hidden.grad, same.grad)


def test_sgd_on_the_fused_loss_follows_sgd_on_plain_torch(head):
    """Twenty steps with and without the fused pass end at the same weights."""
    plain = nn.Linear(8, 31)
    plain.load_state_dict(head.state_dict())
    hidden, targets, rows = inputs()
    hidden = hidden.detach()
    advantages = rows.advantages[rows.row_of_token.long()]
    for _ in range(20):
        out = head(hidden, targets=targets, rows=rows, spec=LossSpec())
        logps = plain(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]
        ratio = (logps - logps.detach()).exp()
        loss = -(ratio * advantages).sum() / len(targets)
        for layer, value in ((head, out.loss), (plain, loss)):
            layer.zero_grad()
            value.backward()
            with torch.no_grad():
                for p in layer.parameters():
                    p.sub_(0.5 * p.grad)
    assert torch.allclose(head.weight, plain.weight, atol=1e-6)


def test_a_layer_that_does_more_than_its_class_is_refused_by_what_it_does():
    hooked, patched, plain = (nn.Linear(8, 31) for _ in range(3))
    handle = hooked.register_forward_hook(lambda module, args, out: out * 0.5)
    patched.forward = lambda x: x
    with pytest.raises(ValueError, match="the layer has forward hooks"):
        FusedHead.from_linear(hooked)
    with pytest.raises(ValueError, match="the layer has a forward of its own"):
        FusedHead.from_linear(patched)
    handle.remove()
    assert FusedHead.from_linear(hooked).weight is hooked.weight
    assert FusedHead.from_linear(plain).weight is plain.weight
