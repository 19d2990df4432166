"""Totals to means: what the trainer logs."""

import torch

from polaris_kernels import LossSpec, linear_grpo_loss, mean_metrics, merge_metrics

from .cases import make_head, make_rows


def totals():
    head = make_head()
    spec = LossSpec(beta=0.1, is_correction="token_truncate")
    return linear_grpo_loss(
        head.hidden, head.weight, head.targets, rows=make_rows(head), spec=spec
    ).metrics


def test_means_are_sums_over_tokens():
    found = totals()
    means = mean_metrics(found)
    tokens = found["num_tokens"]
    assert means["entropy"] == found["sum_entropy"] / tokens
    assert means["kl"] == found["sum_kl"] / tokens
    assert means["ratio/max"] == found["max_ratio"]
    assert means["loss"] == means["loss/human"] + means["loss/policy"]
    both = means["clip_ratio/low_mean"] + means["clip_ratio/high_mean"]
    assert means["clip_ratio/region_mean"] == both


def test_merging_adds_sums_and_keeps_the_largest():
    found = totals()
    merged = merge_metrics([found, found])
    for name, value in found.items():
        expected = value if name.startswith("max_") else 2 * value
        assert torch.equal(merged[name], expected)
    assert merge_metrics([]) == {}


def test_a_metric_missing_from_one_part_is_kept():
    merged = merge_metrics([{"sum_kl": torch.tensor(1.0)}, {"num_tokens": torch.tensor(3.0)}])
    assert merged == {"sum_kl": torch.tensor(1.0), "num_tokens": torch.tensor(3.0)}


def test_metrics_carry_no_gradient():
    assert not any(value.requires_grad for value in totals().values())
