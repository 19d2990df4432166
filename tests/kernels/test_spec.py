"""LossSpec refuses what cannot work, in one line that names field, value and remedy."""

import math

import pytest

from polaris_kernels import LossSpec
from polaris_kernels.spec import LOSS_TYPES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type='ppo' is not possible; use one of grpo"),
        ({"kl_estimator": "k4"}, "kl_estimator='k4'"),
        ({"is_correction": "truncate"}, "token_truncate"),
        ({"human_ratio": "no"}, "same, luffy"),
        ({"aggregation": "mean"}, "token_mean"),
        ({"epsilon": -0.1}, "epsilon=-0.1 is not possible; give a number from 0.0 to 1.0"),
        ({"epsilon": math.nan}, "epsilon=nan"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"beta": math.inf}, "beta=inf"),
        ({"is_cap": 0.0}, "is_cap=0.0 is not possible; give a number above 0"),
        ({"is_floor": 3.0}, "is_floor=3.0"),
        ({"delta": 1.1}, r"delta=1.1 is not possible; give more than 1 \+ epsilon_high = 1.2"),
        ({"loss_type": "sapo", "delta": 4.0}, "sapo has no two-sided clip"),
        ({"loss_type": "cispo"}, "such as 5.0"),
        ({"loss_type": "dr_grpo"}, "give the run's longest"),
        ({"loss_type": "gspo", "ratio_level": "token"}, "use grpo for tokens"),
        ({"loss_type": "gmpo", "ratio_level": "sequence"}, "defines its own ratio; leave it None"),
        ({"ratio_level": "row"}, "use one of token, sequence, sequence_token"),
        ({"loss_type": "vespo", "is_correction": "sequence_mask"}, "use token_"),
        ({"loss_type": "vespo", "is_correction": "geometric_truncate"}, "use token_"),
        ({"is_floor": math.inf, "is_cap": None}, "is_floor=inf"),
        ({"top_entropy_quantile": 1.2}, "give a number from 0.0 to 1.0"),
        ({"top_entropy_quantile": math.nan}, "top_entropy_quantile=nan"),
        ({"clip_cov_ratio": 0.0}, "give a number above 0 and at most 1.0"),
        ({"kl_cov_ratio": 1.5}, "kl_cov_ratio=1.5 is not possible; give a number above 0 and at"),
        ({"kl_cov_coef": -0.1}, "kl_cov_coef=-0.1"),
        ({"clip_cov_lb": 5.0}, "clip_cov_lb=5.0 is not possible; give less than 5.0"),
        ({"ratio_cap": 0.0}, "ratio_cap=0.0"),
        ({"ratio_floor": 1.5}, "ratio_floor=1.5"),
        ({"dro_beta": 0.0}, "dro_beta=0.0"),
        ({"loss_type": "dppo_tv", "delta": 4.0}, "dppo_tv has no two-sided clip"),
        ({"max_completion_length": 0}, "give 1 or more"),
    ],
)
def test_impossible_values(options, message):
    with pytest.raises(ValueError, match=message) as error:
        LossSpec(**options)
    assert len(str(error.value).splitlines()) == 1


def test_a_misspelt_field_is_an_error():
    with pytest.raises(TypeError, match="epsilon_hi"):
        LossSpec(epsilon_hi=0.2)


def test_every_loss_type_can_be_made():
    needed = {"cispo": {"epsilon_high": 5.0}, "dr_grpo": {"max_completion_length": 9}}
    for loss_type in LOSS_TYPES:
        assert LossSpec(loss_type=loss_type, **needed.get(loss_type, {})).loss_type == loss_type


def test_defaults_follow_the_loss_type():
    assert LossSpec().resolved_aggregation == "token_mean"
    assert LossSpec(loss_type="grpo").resolved_aggregation == "sequence_mean"
    assert LossSpec(loss_type="luspo").resolved_aggregation == "sequence_sum"
    assert LossSpec(loss_type="gspo").uses_sequence_ratio
    assert not LossSpec(loss_type="dapo").uses_sequence_ratio
    assert LossSpec(epsilon=0.3).upper_epsilon == 0.3


def test_who_shares_the_gradient_of_the_ratio():
    assert LossSpec(loss_type="gspo").shares_ratio_gradient
    assert LossSpec(loss_type="gmpo").shares_ratio_gradient
    assert not LossSpec(loss_type="gspo", ratio_level="sequence_token").shares_ratio_gradient
    assert not LossSpec(loss_type="grpo").shares_ratio_gradient
