"""Policy losses by hand: small numbers whose answers fit on paper, signs, and derivatives."""

import math

import pytest
import torch

from polaris_kernels import LossRows, LossSpec
from polaris_kernels.losses import kl_terms
from polaris_kernels.objective import SpecObjective
from polaris_kernels.reference import kl_estimate
from polaris_kernels.rows import view_rows
from polaris_kernels.spec import KL_ESTIMATORS


def evaluate(spec, logps, old, advantages, row=None, **rest):
    """(loss, d loss / d logps) of tokens given by plain lists; weights 1 each."""
    logps = torch.tensor(logps, dtype=torch.float64)
    row = torch.arange(len(logps)) if row is None else torch.tensor(row)
    R = int(row.max()) + 1
    rows = LossRows(
        row_of_token=row,
        num_rows=R,
        advantages=torch.tensor(advantages, dtype=torch.float64),
        old_logps=None if old is None else torch.tensor(old, dtype=torch.float64),
        denominator=1.0,
        **{k: torch.tensor(v) for k, v in rest.items()},
    )
    objective = SpecObjective(spec, view_rows(rows, None, None, spec, torch.float64))
    entropy = torch.zeros_like(logps)
    gradient = objective.gradients(slice(None), logps, entropy).logp
    return objective.finish(logps, entropy)[0].item(), gradient.tolist()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.56, 0.0),  # clipped at 1.28
        (0.5, 2.0, -1.0, -1.0),  # a good token that became rare is still pulled up
        (0.5, -2.0, 1.6, 0.0),  # clipped at .8
        (1.5, -2.0, 3.0, 3.0),
        (4.0, -2.0, 6.0, 0.0),  # two-sided clip at 3
        (1.0, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_ratio(ratio, advantage, loss, slope):
    spec = LossSpec(epsilon=0.2, epsilon_high=0.28, delta=3.0)
    old = -2.0
    got, gradient = evaluate(spec, [old + math.log(ratio)], [old], [advantage])
    assert got == pytest.approx(loss)
    assert gradient == pytest.approx([slope])


def test_cispo_keeps_the_gradient_of_a_capped_token():
    spec = LossSpec(loss_type="cispo", epsilon_high=1.5)
    loss, gradient = evaluate(spec, [-1.0], [-1.0 - math.log(4.0)], [2.0])
    assert loss == pytest.approx(1.5 * 2.0)
    assert gradient == pytest.approx([-3.0])


def test_gspo_has_one_ratio_a_row():
    spec = LossSpec(loss_type="gspo", epsilon=0.5)
    # mean log-ratio 0.1: both tokens move with exp(0.1), though one alone is far outside the range
    loss, gradient = evaluate(spec, [-1.0, -1.0], [-1.9, -0.3], [1.0], row=[0, 0])
    assert loss == pytest.approx(-math.exp(0.1))
    assert gradient == pytest.approx([-math.exp(0.1) / 2] * 2)


def test_gmpo_stops_only_the_clipped_token():
    spec = LossSpec(loss_type="gmpo", epsilon=0.4)
    loss, gradient = evaluate(spec, [-1.0, -1.0], [-2.0, -1.2], [1.0], row=[0, 0])
    ratio = math.exp((0.4 + 0.2) / 2)
    assert loss == pytest.approx(-ratio)
    assert gradient == pytest.approx([0.0, -ratio / 2])


def test_sapo_is_grpo_at_ratio_one():
    for advantage in (1.0, -1.0):
        sapo = evaluate(LossSpec(loss_type="sapo"), [-1.0], [-1.0], [advantage])[1]
        assert sapo == pytest.approx([-advantage])


def test_vespo_weight_is_one_on_policy():
    loss, gradient = evaluate(LossSpec(loss_type="vespo"), [-1.0, -3.0], None, [2.0], row=[0, 0])
    assert loss == pytest.approx(8.0)
    assert gradient == pytest.approx([-2.0, -2.0])


def test_reinforce_ignores_the_ratio():
    loss, gradient = evaluate(LossSpec(loss_type="reinforce"), [-1.0], [-3.0], [2.0])
    assert (loss, gradient) == (pytest.approx(2.0), pytest.approx([-2.0]))


def test_luffy_shapes_human_rows_only():
    spec = LossSpec(human_ratio="luffy", luffy_gamma=0.1)
    p = 0.3
    loss, gradient = evaluate(spec, [math.log(p)] * 2, None, [1.0, 1.0], is_human=[True, False])
    assert loss == pytest.approx(-p / (p + 0.1) - 1.0)
    assert gradient == pytest.approx([-p * 0.1 / (p + 0.1) ** 2, -1.0])


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        ("none", [1.0, 1.0, 1.0, 1.0]),
        ("token_truncate", [1.5, 1.2, 0.6, 1.0]),
        ("token_mask", [0.0, 1.2, 0.0, 1.0]),
        ("sequence_truncate", [1.5, 1.5, 0.5**0.5, 0.5**0.5]),
        ("sequence_mask", [0.0, 0.0, 0.5**0.5, 0.5**0.5]),
    ],
)
def test_importance_corrections(correction, expected):
    # row 0: ratios 3 and 1.2, geometric mean 1.897; row 1: .5 and one unknown; row 2: human
    spec = LossSpec(is_correction=correction, is_cap=1.5, is_floor=0.6)
    ratios = [3.0, 1.2, 0.5, math.nan, 9.0]
    old = [-5.0] * 5
    rollout = [o - math.log(r) for o, r in zip(old, ratios, strict=True)]
    gradient = evaluate(
        spec,
        old,
        old,
        [1.0, 1.0, 1.0],
        row=[0, 0, 1, 1, 2],
        rollout_logps=rollout,
        is_human=[False, False, True],
    )[1]
    assert [-x for x in gradient] == pytest.approx([*expected, 1.0])


def test_off_policy_mask_drops_only_bad_rows_that_drifted():
    spec = LossSpec(loss_type="reinforce", off_policy_mask_threshold=0.5)
    gradient = evaluate(
        spec,
        [-3.0, -3.0, -1.1],
        None,
        [-1.0, 1.0, -1.0],
        rollout_logps=[-1.0, -1.0, -1.0],
    )[1]
    assert gradient == pytest.approx([0.0, -1.0, 1.0])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", [1.0, 1.0, 1.0]),
        ("sequence_mean", [0.5, 0.5, 1.0]),
        ("sequence_sum", [0.1, 0.1, 0.1]),
    ],
)
def test_aggregation_weights(aggregation, expected):
    spec = LossSpec(loss_type="reinforce", aggregation=aggregation, max_completion_length=10)
    gradient = evaluate(spec, [-1.0] * 3, None, [1.0, 1.0], row=[0, 0, 1])[1]
    assert [-x for x in gradient] == pytest.approx(expected)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_kl_estimators_match_autograd(estimator):
    logps = torch.linspace(-3, -0.1, 9, dtype=torch.float64, requires_grad=True)
    ref = torch.linspace(-0.2, -2.5, 9, dtype=torch.float64)
    exact = kl_estimate(estimator, logps, ref)
    (slope,) = torch.autograd.grad(exact.sum(), logps)
    value, ours = kl_terms(estimator, (logps - ref).detach())
    assert torch.allclose(value, exact)
    assert torch.allclose(ours, slope)


def test_k3_keeps_its_digits_near_zero():
    value, _ = kl_terms("k3", torch.tensor([1e-4], dtype=torch.float32))
    assert value.item() == pytest.approx(5e-9, rel=1e-2)


def test_k2_and_the_plus_forms_have_the_gradient_of_the_exact_kl_on_average():
    z = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.0, 0.4, -0.1], dtype=torch.float64).log_softmax(0)
    log_p = z.log_softmax(0)
    (exact,) = torch.autograd.grad((log_p.exp() * (log_p - ref)).sum(), z, retain_graph=True)
    p = log_p.detach().exp()
    for estimator in ("k2", "k3+", "k1+"):
        slope = kl_terms(estimator, log_p.detach() - ref)[1]
        (mean,) = torch.autograd.grad((p * slope * log_p).sum(), z, retain_graph=True)
        assert torch.allclose(mean, exact)
