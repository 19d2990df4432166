"""Policy losses by hand: small numbers whose answers fit on paper, signs, and derivatives."""

import math

import pytest
import torch

from polaris_kernels import LossRows, LossSpec
from polaris_kernels.losses import kl_terms
from polaris_kernels.objective import SpecObjective
from polaris_kernels.reference import kl_estimate, policy_loss
from polaris_kernels.rows import view_rows
from polaris_kernels.spec import KL_ESTIMATORS, LOSS_TYPES


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


@pytest.mark.parametrize(
    ("loss_type", "options"),
    [
        ("grpo", {}),
        ("grpo", {"delta": 3.0}),
        ("gspo", {}),
        ("clip_cov", {"clip_cov_lb": 1e8, "clip_cov_ub": 1e9}),
        ("gmpo", {}),
        ("sapo", {}),
        ("cispo", {"epsilon_high": 1.5}),
        ("dppo_tv", {}),
        ("dppo_kl", {}),
        ("kl_cov", {"kl_cov_ratio": 1e-9}),
    ],
)
def test_an_overflowing_ratio_is_no_nan_where_nothing_depends_on_it(loss_type, options):
    spec = LossSpec(loss_type=loss_type, **options)
    # exp(1_000) is inf in float64 too; kl_cov alone never clips a positive advantage
    advantages = [0.0, 0.0, -1.0] if loss_type == "kl_cov" else [1.0, 0.0, -1.0]
    (loss, gradient), (expected, exact) = (
        evaluate(spec, [-1.0] * 3, [old, old, -1.0], advantages) for old in (-1_001.0, -31.0)
    )
    # kl_cov's penalty, on one token at least, is the distance itself
    assert loss - (970.0 if loss_type == "kl_cov" else 0.0) == pytest.approx(expected, abs=1e-6)
    assert gradient == pytest.approx(exact, abs=1e-6)


def test_a_ratio_that_is_nan_stays_loud():
    for advantage in (1.0, -1.0):
        loss, gradient = evaluate(LossSpec(), [-1.0, -1.0], [math.nan, -1.0], [advantage, 1.0])
        assert math.isnan(loss) and math.isnan(gradient[0]) and gradient[1] == -1.0


def test_cispo_keeps_the_gradient_of_a_capped_token():
    spec = LossSpec(loss_type="cispo", epsilon_high=1.5)
    loss, gradient = evaluate(spec, [-1.0], [-1.0 - math.log(4.0)], [2.0])
    assert loss == pytest.approx(1.5 * 2.0)
    assert gradient == pytest.approx([-3.0])


def test_cispo_lifts_small_ratios_to_the_floor():
    spec = LossSpec(loss_type="cispo", epsilon_high=1.5, ratio_floor=0.5)
    assert evaluate(spec, [-3.0], [-3.0 + math.log(4.0)], [2.0])[1] == pytest.approx([-1.0])


def test_dro_pulls_back_in_proportion_to_the_log_ratio():
    spec = LossSpec(loss_type="dro", dro_beta=0.5)
    loss, gradient = evaluate(spec, [-1.0], [-3.0], [2.0])
    assert loss == pytest.approx(2.0 + 0.25 * 4.0)
    assert gradient == pytest.approx([-2.0 + 1.0])


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


@pytest.mark.parametrize(
    ("loss_type", "p", "old", "advantage", "kept"),
    [
        # |p - old| against .15 up and .1 down
        ("dppo_tv", 0.36, 0.2, 1.0, False),
        ("dppo_tv", 0.34, 0.2, 1.0, True),
        ("dppo_tv", 0.36, 0.2, -1.0, True),  # back towards the old policy: never stopped
        ("dppo_tv", 0.19, 0.3, -1.0, False),
        ("dppo_tv", 0.21, 0.3, -1.0, True),
        ("dppo_tv", 0.19, 0.3, 1.0, True),
        # ten times as likely, and hardly any mass moved: a ratio clip would stop it
        ("dppo_tv", 0.01, 0.001, 1.0, True),
        # .2 log(.2/.75) + .8 log(.8/.25) = .666; .2 log(.2/.4) + .8 log(.8/.6) = .0915
        ("dppo_kl", 0.75, 0.2, 1.0, False),
        ("dppo_kl", 0.4, 0.2, 1.0, True),
        ("dppo_kl", 0.75, 0.2, -1.0, True),
        # .5 log(.5/.2) + .5 log(.5/.8) = .223
        ("dppo_kl", 0.2, 0.5, -1.0, False),
        ("dppo_kl", 0.2, 0.5, 1.0, True),
    ],
)
def test_dppo_masks_by_divergence_and_direction(loss_type, p, old, advantage, kept):
    spec = LossSpec(loss_type=loss_type, epsilon=0.1, epsilon_high=0.15)
    loss, gradient = evaluate(spec, [math.log(p)], [math.log(old)], [advantage])
    weight = p / old * kept
    assert loss == pytest.approx(-weight * advantage * math.log(p))
    assert gradient == pytest.approx([-weight * advantage])


def test_dppo_caps_the_ratio():
    spec = LossSpec(loss_type="dppo_tv", ratio_cap=3.0)
    gradient = evaluate(spec, [math.log(0.01)], [math.log(0.001)], [2.0])[1]
    assert gradient == pytest.approx([-6.0])


@pytest.mark.parametrize("logp", [0.0, -1e-9, -1e-30, -200.0])
def test_dppo_kl_is_finite_at_certain_and_impossible_tokens(logp):
    spec = LossSpec(loss_type="dppo_kl", epsilon=0.05)
    # from certain to certain nothing moves; to or from an even chance, the KL is large
    assert evaluate(spec, [logp], [logp], [1.0])[1] == pytest.approx([-1.0])
    for now, old in ((logp, math.log(0.5)), (math.log(0.5), logp)):
        away = 1.0 if now > old else -1.0
        assert evaluate(spec, [now], [old], [away])[1] == [0.0]


def test_gspo_token_moves_each_token_by_itself():
    spec = LossSpec(loss_type="gspo", ratio_level="sequence_token", epsilon=0.5)
    advantages = [1.0, 3.0]
    loss, gradient = evaluate(spec, [-1.0, -1.0], [-1.9, -0.3], advantages, row=[0, 0])
    assert loss == pytest.approx(-4 * math.exp(0.1) / 2)
    assert gradient == pytest.approx([-math.exp(0.1) / 2, -3 * math.exp(0.1) / 2])


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
        ("sequence_truncate", [1.5, 1.5, 0.6, 0.6]),
        ("sequence_mask", [0.0, 0.0, 0.0, 0.0]),
        ("geometric_truncate", [1.5, 1.5, 0.5**0.5, 0.5**0.5]),
        ("geometric_mask", [0.0, 0.0, 0.5**0.5, 0.5**0.5]),
    ],
)
def test_importance_corrections(correction, expected):
    # row 0: ratios 3 and 1.2, product 3.6, geometric mean 1.897; row 1: .5 and one unknown;
    # row 2: human
    spec = LossSpec(is_correction=correction, is_cap=1.5, is_floor=0.6)
    ratios = [3.0, 1.2, 0.5, math.nan, 9.0]
    assert importance_weights(spec, ratios) == pytest.approx([*expected, 1.0])


def test_importance_weights_without_an_upper_bound():
    free = LossSpec(is_correction="sequence_truncate", is_cap=None)
    assert importance_weights(free, [3.0, 1.2, 0.5, math.nan, 9.0])[:4] == pytest.approx(
        [3.6, 3.6, 0.5, 0.5]
    )
    floor = LossSpec(is_correction="token_mask", is_cap=None, is_floor=0.6)
    assert importance_weights(floor, [3.0, 1.2, 0.5, 0.7, 1.0])[:4] == pytest.approx(
        [3.0, 1.2, 0.0, 0.7]
    )


def test_a_product_of_ratios_that_overflows_is_masked_not_nan():
    spec = LossSpec(is_correction="sequence_mask")
    assert importance_weights(spec, [1e300, 1e300, 1.0, 1.0, 1.0]) == [0.0, 0.0, 1.0, 1.0, 1.0]


def importance_weights(spec, ratios):
    """Factors of five tokens' gradients: rows of two, two and one, the last one human."""
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
    return [-x for x in gradient]


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


WIDE = {
    "cispo": {"epsilon_high": 1.2, "ratio_floor": 0.8},
    "dr_grpo": {"max_completion_length": 99},
    "gspo": {"epsilon": 0.01},
    "luspo": {"epsilon": 0.01},
    "dppo_tv": {"epsilon": 0.02, "ratio_cap": 1.5},
    "dppo_kl": {"epsilon": 0.005, "epsilon_high": 0.002, "ratio_cap": 1.5},
    "clip_cov": {"clip_cov_ratio": 0.2, "clip_cov_lb": 0.1, "clip_cov_ub": 1.0},
    "kl_cov": {"kl_cov_ratio": 0.2, "kl_cov_coef": 0.5},
}
EXTRAS = {
    "plain": {},
    "kl": {"beta": 0.1, "kl_estimator": "k3+"},
    "entropy": {"entropy_coef": 0.1, "top_entropy_quantile": 0.3},
    "token_mask": {"is_correction": "token_mask", "is_cap": 1.5, "is_floor": 0.6},
}


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_coefficients_match_autograd_on_many_off_policy_tokens(loss_type, extra):
    spec = LossSpec(loss_type=loss_type, **WIDE.get(loss_type, {}), **EXTRAS[extra])
    T, R = 600, 12
    g = torch.Generator().manual_seed(3)

    def spread(size):
        return (torch.rand(T, generator=g, dtype=torch.float64) * 2 - 1) * size

    logps = (-torch.rand(T, generator=g, dtype=torch.float64) * 3).requires_grad_()
    entropy = torch.rand(T, generator=g, dtype=torch.float64).requires_grad_()
    now = logps.detach()
    rows = LossRows(
        row_of_token=torch.randint(R, (T,), generator=g).sort().values,
        num_rows=R,
        advantages=torch.randn(R, generator=g, dtype=torch.float64),
        old_logps=now - spread(0.69),
        ref_logps=now - spread(0.5),
        rollout_logps=now - spread(0.9),
        is_human=torch.arange(R) == 4,
    )
    exact = policy_loss(logps, entropy, rows, spec)
    slopes = torch.autograd.grad(exact, (logps, entropy), allow_unused=True)
    objective = SpecObjective(spec, view_rows(rows, None, None, spec, torch.float64))
    ours = objective.gradients(slice(None), now, entropy.detach())
    loss, metrics = objective.finish(now, entropy.detach())
    assert torch.allclose(loss, exact, rtol=1e-12)
    for found, slope in zip((ours.logp, ours.entropy), slopes, strict=True):
        assert (found is None) == (slope is None or not slope.any())
        assert found is None or torch.allclose(found, slope, rtol=1e-10, atol=1e-16)
    singled_out = sum(
        metrics.get(f"num_{name}", 0) for name in ("clip_low", "clip_high", "selected")
    )
    if loss_type not in ("sapo", "vespo", "dro", "reinforce"):
        assert 0.1 * T <= singled_out <= 0.9 * T


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
