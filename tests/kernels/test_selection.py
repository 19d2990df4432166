"""Which tokens entropy and covariance single out: by hand, repeatable, and without the host."""

import math
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from polaris_kernels import LossRows, LossSpec, linear_grpo_loss, mean_metrics
from polaris_kernels import rows as rows_module
from polaris_kernels.objective import SpecObjective
from polaris_kernels.rows import TokenView, view_rows
from polaris_kernels.selection import covariance, high_entropy, largest, spread_over_band
from polaris_kernels.spec import LOSS_TYPES

from .cases import assert_close, grads, make_head, make_rows, reference_loss


def view(size: int, *, human=(), unkept=(), advantages=None, threshold=None) -> TokenView:
    """One token a row; `human` and `unkept` are positions."""
    rows = LossRows(
        row_of_token=torch.arange(size),
        num_rows=size,
        advantages=torch.ones(size) if advantages is None else torch.tensor(advantages),
        is_human=torch.tensor([t in human for t in range(size)]) if human else None,
        entropy_threshold=threshold,
    )
    kept = torch.tensor([t not in unkept for t in range(size)]) if unkept else None
    return view_rows(rows, None, kept, LossSpec(), torch.float64)


def chosen(mask: torch.Tensor) -> list[int]:
    return mask.nonzero().squeeze(1).tolist()


ENTROPY = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.7], dtype=torch.float64)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, [2]),
        (0.2, [2]),  # the quantile .8 lies between .7 and .9
        (0.25, [2, 4]),  # the quantile .75 is .7 itself
        (0.4, [2, 4]),
        (0.5, [0, 2, 4]),
        (0.99, [0, 2, 3, 4]),
    ],
)
def test_top_entropy_share_by_hand(share, expected):
    assert chosen(high_entropy(ENTROPY, view(5), share)) == expected


def test_equal_entropies_at_the_quantile_are_all_kept():
    assert chosen(high_entropy(torch.full((5,), 0.3), view(5), 0.2)) == [0, 1, 2, 3, 4]


def test_human_tokens_keep_their_loss_and_do_not_move_the_quantile():
    entropy = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.7, 5.0, 0.0])
    assert chosen(high_entropy(entropy, view(7, human=(5, 6)), 0.25)) == [2, 4, 5, 6]


def test_a_given_threshold_takes_the_place_of_the_quantile():
    assert chosen(high_entropy(ENTROPY, view(5, threshold=0.4), 0.01)) == [0, 2, 4]
    tensor = torch.tensor(0.6, dtype=torch.float64)
    assert chosen(high_entropy(ENTROPY, view(5, threshold=tensor), 0.99)) == [2, 4]


def test_quantile_agrees_with_torch_on_many_sizes():
    g = torch.Generator().manual_seed(1)
    for size in (1, 2, 3, 10, 101, 1000):
        entropy = torch.rand(size, generator=g, dtype=torch.float64)
        for share in (0.1, 0.2, 0.5, 0.8):
            threshold = torch.quantile(entropy, 1 - share, interpolation="higher")
            assert torch.equal(high_entropy(entropy, view(size), share), entropy >= threshold)


def test_covariance_by_hand():
    # mean log-prob -2, mean advantage 1
    logps = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    parts = covariance(logps, view(3, advantages=[3.0, 1.0, -1.0]))
    assert parts.tolist() == pytest.approx([2.0, 0.0, 2.0])


def test_human_tokens_do_not_move_the_means():
    logps = torch.tensor([-1.0, -2.0, -3.0, -90.0], dtype=torch.float64)
    parts = covariance(logps, view(4, advantages=[3.0, 1.0, -1.0, 9.0], human=(3,)))
    assert parts.tolist()[:3] == pytest.approx([2.0, 0.0, 2.0])


VALUES = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.0, 9.0])  # a band from .5 to 8 holds five


def draw(share, size=7, **options):
    barred = torch.zeros(size, dtype=torch.bool)
    for t in options.pop("barred", ()):
        barred[t] = True
    values = VALUES[:size]
    return chosen(
        spread_over_band(
            values, view(size, **options), share=share, low=0.5, high=8.0, barred=barred
        )
    )


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.01, [4]),  # at least one: the middle of the band, value 3
        (0.3, [2, 3]),  # floor(.3 * 7) = 2: values 2 and 4
        (0.5, [0, 1, 4]),  # values 1, 3 and 5
        (0.99, [0, 1, 2, 3, 4]),  # no more than the band has
    ],
)
def test_a_share_is_spread_evenly_over_the_band(share, expected):
    assert draw(share) == expected


def test_barred_human_and_masked_tokens_are_not_drawn():
    assert draw(0.99, barred=(0, 2), human=(1,), unkept=(3,)) == [4]
    assert draw(0.99, barred=(0, 1, 2, 3, 4)) == []


@pytest.mark.parametrize("found", [1, 2, 3, 7, 50, 1001])
def test_exactly_as_many_as_wanted_are_drawn_one_from_each_part(found):
    values = torch.linspace(1.0, 2.0, found)[torch.randperm(found)]
    for wanted in {1, (found + 1) // 2, found}:
        share = (wanted + 0.5) / found if wanted < found else 1.0
        drawn = values[
            spread_over_band(
                values,
                view(found),
                share=share,
                low=0.0,
                high=3.0,
                barred=torch.zeros(found, dtype=torch.bool),
            )
        ]
        assert len(drawn) == wanted
        ranks = ((drawn.sort().values - 1) * (found - 1)).round()
        parts = (ranks * wanted / found).floor() if found > 1 else ranks
        assert parts.tolist() == list(range(wanted))


def test_largest_by_hand():
    assert chosen(largest(VALUES, view(7), share=0.3)) == [0, 6]
    assert chosen(largest(VALUES, view(7), share=1e-6)) == [6]
    assert chosen(largest(VALUES, view(7, human=(6,), unkept=(0,)), share=0.4)) == [2, 4]
    assert chosen(largest(VALUES, view(7), share=1.0)) == list(range(7))


def test_clip_cov_takes_tokens_out_and_kl_cov_holds_them_back():
    head = make_head(200, dtype=torch.float64)
    rows = make_rows(head, 20)
    clip = LossSpec(loss_type="clip_cov", clip_cov_ratio=0.1, clip_cov_lb=0.2, clip_cov_ub=3.0)
    kl = LossSpec(loss_type="kl_cov", kl_cov_ratio=0.1, kl_cov_coef=0.7)
    policy = rows.completion_mask & ~rows.is_human[rows.row_of_token]
    for spec in (clip, kl):
        out = loss_of(head, rows, spec)
        assert out.metrics["num_selected"] == int(0.1 * int(policy.sum()))
        assert_close(out.loss, reference_loss(head, rows, spec), 1e-12)
    plain = LossSpec(loss_type="clip_cov", clip_cov_lb=1e5, clip_cov_ub=2e5)
    assert torch.equal(loss_of(head, rows, plain).loss, loss_of(head, rows, LossSpec()).loss)
    assert loss_of(head, rows, plain).metrics["num_selected"] == 0


def test_entropy_mask_keeps_the_kl_and_counts_what_it_keeps():
    head = make_head(200, dtype=torch.float64)
    rows = replace(make_rows(head, 20), is_human=None)
    spec = LossSpec(beta=0.3, top_entropy_quantile=0.2)
    out = loss_of(head, rows, spec)
    count = out.metrics["num_high_entropy"]
    assert count == math.floor(0.2 * (int(rows.completion_mask.sum()) - 1)) + 1
    share = mean_metrics(out.metrics)["high_entropy/mean"]
    assert share == count / out.metrics["num_tokens"]
    silent = replace(rows, advantages=torch.zeros_like(rows.advantages))
    without = loss_of(head, silent, LossSpec(beta=0.3))
    assert torch.equal(loss_of(head, silent, spec).loss, without.loss)


def test_a_threshold_over_micro_batches_equals_the_whole_batch():
    head = make_head(60)
    rows = replace(make_rows(head), is_human=None)
    spec = LossSpec(top_entropy_quantile=0.3, entropy_coef=0.1)
    whole = loss_of(head, rows, spec)
    entropy = whole.entropy[rows.completion_mask]
    threshold = torch.quantile(entropy, 0.7)
    losses = []
    for part in (rows.row_of_token < 3, rows.row_of_token >= 3):
        names = ("row_of_token", "completion_mask", "old_logps", "ref_logps", "rollout_logps")
        piece = replace(
            rows,
            entropy_threshold=threshold,
            denominator=rows.completion_mask.sum(),
            **{name: getattr(rows, name)[part] for name in names},
        )
        cut = replace(head, hidden=head.hidden[part], targets=head.targets[part])
        # no statistics of other tokens are needed, so chunks may be as small as one token
        losses.append(loss_of(cut, piece, spec, chunk_bytes=1).loss)
    assert_close(sum(losses), whole.loss)
    for a, b in zip(grads(sum(losses), head), grads(whole.loss, head), strict=True):
        assert_close(a, b)


SELECTING = {
    "clip_cov": LossSpec(
        loss_type="clip_cov", clip_cov_ratio=0.2, clip_cov_lb=0.0, clip_cov_ub=3.0
    ),
    "kl_cov": LossSpec(loss_type="kl_cov", kl_cov_ratio=0.2),
    "entropy": LossSpec(loss_type="gspo", top_entropy_quantile=0.3, entropy_coef=0.1),
}


@pytest.mark.parametrize("name", SELECTING)
def test_bitwise_repeatable_and_free_of_the_order_of_rows(name):
    spec = SELECTING[name]
    head = make_head(120, dtype=torch.float64)
    rows = replace(make_rows(head), denominator=77.0)
    first, second = (loss_of(head, rows, spec) for _ in range(2))
    assert torch.equal(first.loss, second.loss)
    for a, b in zip(grads(first.loss, head), grads(second.loss, head), strict=True):
        assert torch.equal(a, b)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    names = ("row_of_token", "completion_mask", "old_logps", "ref_logps", "rollout_logps")
    moved = replace(rows, **{n: getattr(rows, n)[order] for n in names})
    shuffled = replace(head, hidden=head.hidden[order], targets=head.targets[order])
    third = loss_of(shuffled, moved, spec)
    assert_close(third.loss, first.loss)
    assert_close(grads(third.loss, head)[0], grads(loss_of(head, rows, spec).loss, head)[0])


@pytest.mark.parametrize("name", SELECTING)
def test_masking_in_place_equals_gathering(name, monkeypatch):
    head = make_head(120)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 1.0]).double()
    rows = replace(make_rows(head), row_weight=weight)
    expected = loss_of(head, rows, SELECTING[name])
    slopes = grads(expected.loss, head)
    monkeypatch.setattr(rows_module, "_is_host_memory", lambda value: False)
    ours = loss_of(head, rows, SELECTING[name], chunk_bytes=7 * 33 * 8)
    assert_close(ours.loss, expected.loss)
    for a, b in zip(grads(ours.loss, head), slopes, strict=True):
        assert_close(a, b)
    for key, value in expected.metrics.items():
        assert_close(ours.metrics[key], value, name=key)


@pytest.mark.parametrize("masked", [False, True], ids=["gathered", "masked_in_place"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_no_loss_reads_a_device_value_on_the_host(loss_type, masked):
    """A fake tensor has no value: whatever asks for one raises."""
    needed = {"cispo": {"epsilon_high": 2.0}, "dr_grpo": {"max_completion_length": 9}}
    spec = LossSpec(
        loss_type=loss_type,
        beta=0.1,
        entropy_coef=0.1,
        top_entropy_quantile=0.2,
        is_correction="token_mask",
        off_policy_mask_threshold=0.1,
        human_ratio="luffy",
        **needed.get(loss_type, {}),
    )
    with FakeTensorMode():
        numbers = {name: torch.zeros(30) for name in ("old_logps", "ref_logps", "rollout_logps")}
        rows = LossRows(
            row_of_token=torch.zeros(30, dtype=torch.int64),
            num_rows=4,
            advantages=torch.zeros(4),
            is_human=torch.zeros(4, dtype=torch.bool),
            **numbers,
        )
        kept = torch.zeros(30, dtype=torch.bool) if masked else None
        objective = SpecObjective(spec, view_rows(rows, None, kept, spec, torch.float32))
        values = torch.zeros(30)
        gradients = objective.gradients(slice(0, 30), values, values)
        loss, metrics = objective.finish(values, values)
    assert gradients.logp.shape == (30,) and loss.shape == ()
    assert metrics["num_high_entropy"].shape == ()


def test_a_threshold_without_a_share_is_refused():
    head = make_head()
    rows = replace(make_rows(head), entropy_threshold=1.0)
    with pytest.raises(ValueError, match=r"spec.top_entropy_quantile is 1.0, which keeps every"):
        loss_of(head, rows, LossSpec())
    rows = replace(rows, entropy_threshold=torch.ones(2))
    with pytest.raises(ValueError, match=r"a number or a \(\) tensor, got \(2,\)"):
        loss_of(head, rows, LossSpec(top_entropy_quantile=0.5))


def loss_of(head, rows, spec, **options):
    return linear_grpo_loss(
        head.hidden, head.weight, head.targets, rows=rows, spec=spec, **(head.options | options)
    )
