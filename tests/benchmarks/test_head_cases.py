"""Every task's reference against plain float64 autograd, and every provider of ours against it."""

from dataclasses import replace

import pytest
import torch

from benchmarks.head_cases import SIZES, SPEC, HeadCase
from benchmarks.head_exact import Outputs, inputs_and_exact
from benchmarks.head_floor import find_floor
from benchmarks.head_ours import providers
from benchmarks.head_peers import torch_gathered, torch_logits, torch_loss, torch_statistics

CPU = torch.device("cpu")
TINY = [case for case in SIZES["tiny"]() if case.dtype == "fp32"]
PLAIN = {"logps": torch_statistics, "logits": torch_logits}


def in_float64(inputs):
    names = ("hidden", "weight", "logits", "old_logps", "upstream", "advantages")
    return replace(inputs, **{name: getattr(inputs, name).double() for name in names})


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.id)
def test_the_sampled_reference_is_what_autograd_gives(case: HeadCase, monkeypatch):
    inputs, exact = inputs_and_exact(case, CPU)
    # plain torch upcasts to float32 as trainers do; here it must stay in float64
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    found = PLAIN.get(case.task, torch_loss)(in_float64(inputs)).once()
    errors = exact.errors(found)
    assert errors and max(errors.values()) < 5e-7, errors


@pytest.mark.parametrize("case", SIZES["tiny"](), ids=lambda case: case.id)
def test_our_forms_pass(case: HeadCase):
    inputs, exact = inputs_and_exact(case, CPU)
    for build in providers(case, "cpu").values():
        errors = exact.errors(build(inputs).once())
        assert max(errors.values()) < (1e-2 if case.dtype == "bf16" else 5e-6), errors


def test_ratios_meet_every_side_of_the_clip_and_keep_away_from_it():
    inputs, exact = inputs_and_exact(HeadCase("logp_op", 64, 16, 307, "fp32"), CPU)
    ratio = (exact.values.logps - inputs.old_logps).exp()
    advantages = inputs.advantages[inputs.row_of_token]
    low, high = 1 - SPEC.epsilon, 1 + SPEC.upper_epsilon
    for side in (ratio < low, ratio > high, (ratio > low) & (ratio < high)):
        assert (advantages[side] > 0).any() and (advantages[side] < 0).any()
    assert min((ratio - low).abs().min(), (ratio - high).abs().min()) > 0.05


@pytest.mark.parametrize("task", ["sparse_mask", "sparse_loss"])
def test_sparse_cases_keep_three_of_sixteen(task: str):
    inputs, exact = inputs_and_exact(HeadCase(task, 160, 16, 307, "fp32"), CPU)
    kept = inputs.mask & (inputs.advantages[inputs.row_of_token] != 0)
    assert int(kept.sum()) == 160 * 3 // 16
    dropped = ~kept[exact.tokens]
    assert dropped.any() and (exact.values.grad_hidden[dropped] == 0).all()
    # the floor multiplies the kept rows alone where they are known beforehand
    assert find_floor(inputs).call.once() is None


def test_a_missed_clip_and_a_wrong_scale_are_seen():
    case = HeadCase("loss", 64, 16, 307, "fp32")
    inputs, exact = inputs_and_exact(case, CPU)
    good = torch_loss(inputs).once()
    unclipped = torch_loss(replace(inputs, old_logps=inputs.old_logps - 3.0)).once()
    assert max(exact.errors(good).values()) < 5e-6
    assert exact.errors(unclipped)["grad_hidden"] > 0.1
    doubled = Outputs(grad_weight=2 * good.grad_weight)
    assert exact.errors(doubled)["grad_weight"] == pytest.approx(1.0, rel=1e-4)
    with pytest.raises(ValueError, match="entropy is no result of this task"):
        exact.errors(Outputs(entropy=torch.zeros(64)))


def test_gathering_by_hand_is_the_masked_loss():
    inputs, exact = inputs_and_exact(HeadCase("sparse_mask", 64, 16, 307, "fp32"), CPU)
    assert max(exact.errors(torch_gathered(inputs).once()).values()) < 5e-6
