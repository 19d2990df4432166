"""The update guard, and fp32 masters of 16-bit models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polaris_fast.config import GuardConfig
from polaris_fast.engine.guard import UpdateGuard
from polaris_fast.engine.masters import MasterWeights
from polaris_fast.types import UserError


def _warm(config: GuardConfig) -> UpdateGuard:
    guard = UpdateGuard(config)
    for _ in range(config.window):
        assert guard.check(1.0) is None
    return guard


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_is_refused_at_once(norm: float) -> None:
    assert UpdateGuard(GuardConfig()).check(norm) == "non_finite"


def test_an_explosion_is_refused_and_does_not_move_the_median() -> None:
    guard = _warm(GuardConfig(max_grad_norm_ratio=10))
    assert guard.check(9.9) is None
    assert guard.check(10.5) == "exploding"
    assert 10.5 not in guard.norms


def test_the_size_check_waits_until_it_has_seen_enough() -> None:
    guard = UpdateGuard(GuardConfig(window=32))
    assert [guard.check(n) for n in (0.001, 1.0, 50.0)] == [None] * 3


def test_too_many_skips_in_a_row_stop_the_run() -> None:
    guard = _warm(GuardConfig(max_consecutive_skips=3))
    assert guard.check(1e9) == guard.check(1e9) == "exploding"
    with pytest.raises(UserError, match="lower learning_rate"):
        guard.check(1e9)


def test_the_guard_resumes_where_it_was() -> None:
    guard = _warm(GuardConfig())
    guard.check(1e9)
    other = UpdateGuard(GuardConfig())
    other.load_state_dict(guard.state_dict())
    assert other.norms == guard.norms and other.consecutive_skips == 1


def test_bf16_weights_follow_updates_smaller_than_their_last_bit() -> None:
    layer = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    nn.init.constant_(layer.weight, 1.0)
    weights = MasterWeights(layer.parameters())
    optimizer = torch.optim.SGD(weights.masters, lr=1.0)
    for _ in range(100):
        (layer.weight.sum() * 1e-4).backward()
        assert layer.weight.grad is None
        optimizer.step()
        weights.publish()
        optimizer.zero_grad()
    assert torch.allclose(weights.masters[0], torch.full((4, 4), 0.99), atol=1e-5)
    assert torch.equal(layer.weight, weights.masters[0].bfloat16())


def test_many_small_gradients_add_up_in_fp32() -> None:
    layer = nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    weights = MasterWeights(layer.parameters())
    layer.weight.sum().backward()
    for _ in range(512):
        (layer.weight.sum() * 0.001).backward()
    grad = weights.masters[0].grad
    assert grad is not None and torch.allclose(grad, torch.tensor(1.512), rtol=3e-3)


def test_fp32_models_keep_their_own_parameters() -> None:
    layer = nn.Linear(2, 2)
    assert [id(p) for p in MasterWeights(layer.parameters()).masters] == [
        id(p) for p in layer.parameters()
    ]
