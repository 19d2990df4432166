"""linear_grpo_loss: every spec against the float64 reference, and what a trainer leans on."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from polaris_kernels import (
    LossRows,
    LossSpec,
    linear_grpo_loss,
    linear_logps,
    merge_metrics,
)
from polaris_kernels import (
    rows as rows_module,
)
from polaris_kernels.spec import LOSS_TYPES
from polaris_kernels.testing import no_worse_than_torch

from .cases import Head, as_float32, assert_close, grads, make_head, make_rows, reference_loss

pytestmark = pytest.mark.usefixtures("cpu_backend")

NEEDED = {"cispo": {"epsilon_high": 1.3}, "dr_grpo": {"max_completion_length": 20}}


def run(head: Head, rows: LossRows, spec: LossSpec | None = None, **options: Any) -> Any:
    return linear_grpo_loss(
        head.hidden,
        head.weight,
        head.targets,
        rows=rows,
        spec=spec,
        bias=head.bias,
        **(head.options | options),
    )


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_worse_than_plain_torch_in_the_same_dtype(loss_type, dtype):
    exact_head = make_head(60, 32, 211, scale=0.3).to(dtype).to(torch.float64)
    head = exact_head.to(dtype)
    rows = as_float32(make_rows(exact_head))
    # reference in float32 would round the inputs of the exact one too
    spec = LossSpec(loss_type=loss_type, beta=0.05, entropy_coef=0.01, **NEEDED.get(loss_type, {}))
    exact, plain = reference_loss(exact_head, rows, spec), reference_loss(head, rows, spec)
    ours = run(head, rows, spec)
    assert ours.loss.dtype == torch.float32
    found = (grads(x, h) for x, h in ((ours.loss, head), (plain, head), (exact, exact_head)))
    for a, b, c, name in zip(*found, ("hidden", "weight"), strict=True):
        no_worse_than_torch(a, b, c, name=name)


def test_ratios_are_exactly_one_without_old_logps():
    head = make_head(dtype=torch.float32)
    rows = replace(as_float32(make_rows(head)), old_logps=None)
    metrics = run(head, rows, LossSpec()).metrics
    assert metrics["sum_ratio"] == metrics["num_tokens"]
    assert metrics["max_ratio"] == 1
    assert metrics["num_clip_low"] == metrics["num_clip_high"] == 0


def test_a_positive_advantage_raises_the_log_prob_and_a_negative_one_lowers_it():
    for sign in (1.0, -1.0):
        head = make_head(6, dtype=torch.float32)
        rows = LossRows(
            row_of_token=torch.zeros(6, dtype=torch.int32),
            num_rows=1,
            advantages=torch.tensor([sign]),
        )
        out = run(head, rows)
        out.loss.backward()
        with torch.no_grad():
            moved = linear_logps(head.hidden - head.hidden.grad, head.weight, head.targets).logps
        assert (sign * (moved - out.logps) > 0).all()


@pytest.mark.parametrize("factor", [0.0, 0.25, -3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_grad_output_scales_the_gradients(factor, dtype):
    head = make_head(dtype=dtype)
    rows = make_rows(head)
    once = grads(run(head, rows).loss, head)
    scaled = grads(run(head, rows).loss * factor, head)
    for a, b in zip(once, scaled, strict=True):
        assert_close((a * factor).double(), b.double(), 1e-11 if dtype == torch.float64 else 5e-3)


def test_a_second_backward_says_what_to_do():
    head = make_head()
    loss = run(head, make_rows(head)).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


@pytest.mark.parametrize("leaf", [0, 1, 2], ids=["hidden", "weight", "bias"])
def test_only_the_leaves_that_ask_get_a_gradient(leaf):
    head = make_head(bias=True)
    rows = make_rows(head)
    parts = [x if i == leaf else x.detach() for i, x in enumerate(head.leaves)]
    linear_grpo_loss(parts[0], parts[1], head.targets, rows=rows, bias=parts[2]).loss.backward()
    assert [x.grad is not None for x in parts] == [i == leaf for i in range(3)]
    assert_close(parts[leaf].grad, grads(reference_loss(head, rows, LossSpec()), head)[leaf])


def test_no_grad_gives_loss_and_metrics_without_a_graph():
    head = make_head()
    rows = make_rows(head)
    with torch.no_grad():
        quiet = run(head, rows)
    loud = run(head, rows)
    assert not quiet.loss.requires_grad
    assert torch.equal(quiet.loss, loud.loss.detach())
    assert quiet.metrics == loud.metrics


@pytest.mark.parametrize("dense", [False, True], ids=["gathered", "masked_in_place"])
def test_what_lies_under_the_mask_never_matters(dense, monkeypatch):
    if dense:
        monkeypatch.setattr(rows_module, "_is_host_memory", lambda value: False)
    spec = LossSpec(beta=0.1, entropy_coef=0.1, is_correction="token_truncate")
    head = make_head()
    rows = make_rows(head)
    expected = run(head, rows, spec)
    expected_grads = grads(expected.loss, head)
    off = ~rows.completion_mask
    dirty = {
        name: getattr(rows, name).masked_fill(off, torch.nan)
        for name in ("old_logps", "ref_logps", "rollout_logps")
    }
    with torch.no_grad():
        head.hidden[off] = torch.inf
    targets = head.targets.masked_fill(off, -100)
    ours = run(replace(head, targets=targets), replace(rows, **dirty), spec)
    assert torch.equal(ours.loss, expected.loss)
    for a, b in zip(grads(ours.loss, head), expected_grads, strict=True):
        assert_close(a, b)
    assert (ours.logps[off] == 0).all() and (ours.entropy[off] == 0).all()
    for name, value in expected.metrics.items():
        assert_close(ours.metrics[name], value, name=name)


@pytest.mark.parametrize("loss_type", ["dapo", "gspo", "gmpo", "vespo"])
def test_masking_in_place_equals_gathering(loss_type, monkeypatch):
    spec = LossSpec(loss_type=loss_type, beta=0.1, entropy_coef=0.1, is_correction="token_mask")
    head = make_head()
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 1.0])
    rows = replace(make_rows(head), row_weight=weight)
    expected = run(head, rows, spec)
    expected_grads = grads(expected.loss, head)
    monkeypatch.setattr(rows_module, "_is_host_memory", lambda value: False)
    ours = run(head, rows, spec, chunk_bytes=7 * 33 * 8)
    assert_close(ours.loss, expected.loss)
    for a, b in zip(grads(ours.loss, head), expected_grads, strict=True):
        assert_close(a, b)
    for name, value in expected.metrics.items():
        assert_close(ours.metrics[name], value, name=name)


def test_positions_given_by_the_caller_are_used():
    head = make_head()
    rows = make_rows(head)
    index = rows.completion_mask.nonzero().squeeze(1)
    given_index = replace(rows, token_index=index)
    assert torch.equal(run(head, given_index).loss, run(head, rows).loss)


@pytest.mark.parametrize("how", ["mask", "weight", "empty"])
def test_a_batch_without_loss_tokens_has_zero_gradients_and_a_graph(how):
    head = make_head(0 if how == "empty" else 12, bias=True)
    N = head.targets.shape[0]
    rows = LossRows(
        row_of_token=torch.zeros(N, dtype=torch.int64),
        num_rows=2,
        advantages=torch.ones(2),
        completion_mask=torch.zeros(N) if how == "mask" else None,
        row_weight=torch.zeros(2) if how == "weight" else None,
        denominator=17.0,
    )
    out = run(head, rows)
    assert out.loss == 0
    for gradient in grads(out.loss, head):
        assert (gradient == 0).all()
    assert out.metrics["num_tokens"] == out.metrics["num_rows"] == 0


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "gspo", "dr_grpo"])
def test_micro_batches_with_a_global_denominator_add_up_to_the_whole(loss_type):
    spec = LossSpec(loss_type=loss_type, beta=0.1, **NEEDED.get(loss_type, {}))
    head = make_head()
    rows = make_rows(head)
    whole = run(head, rows, spec)
    used_rows = rows.row_of_token[rows.completion_mask].unique()
    count = rows.completion_mask.sum() if loss_type == "dapo" else len(used_rows)
    losses, metrics = [], []
    for part in (rows.row_of_token < 2, rows.row_of_token >= 2):
        piece = replace(
            rows,
            row_of_token=rows.row_of_token[part],
            denominator=count,
            **{
                name: getattr(rows, name)[part]
                for name in ("completion_mask", "old_logps", "ref_logps", "rollout_logps")
            },
        )
        cut = Head(head.hidden[part], head.weight, None, head.targets[part], {})
        out = run(cut, piece, spec)
        losses.append(out.loss)
        metrics.append(out.metrics)
    assert_close(sum(losses), whole.loss)
    for a, b in zip(grads(sum(losses), head), grads(whole.loss, head), strict=True):
        assert_close(a, b)
    merged = merge_metrics(metrics)
    for name, value in whole.metrics.items():
        assert_close(merged[name], value, name=name)


@pytest.mark.parametrize("loss_type", ["dapo", "gspo"])
def test_chunking_changes_neither_loss_nor_metrics(loss_type):
    head = make_head()
    rows = make_rows(head)
    spec = LossSpec(loss_type=loss_type)
    one, many = run(head, rows, spec), run(head, rows, spec, chunk_bytes=3 * 33 * 8)
    assert_close(one.loss, many.loss)
    assert one.metrics.keys() == many.metrics.keys()
    for name, value in one.metrics.items():
        assert_close(many.metrics[name], value, name=name)


def test_tokens_with_zero_coefficient_leave_the_same_gradient():
    head = make_head(200)
    rows = replace(make_rows(head, 20), advantages=torch.zeros(20, dtype=torch.float64))
    rows.advantages[3] = 1.0
    for a, b in zip(
        grads(run(head, rows).loss, head),
        grads(reference_loss(head, rows, LossSpec()), head),
        strict=True,
    ):
        assert_close(a, b)


def test_inference_tensors_train_the_head():
    """Gradients are made in forward, so nothing of them has to be saved for backward."""
    head = make_head(dtype=torch.float32)
    rows = as_float32(make_rows(head))
    with torch.inference_mode():
        hidden = head.hidden.clone()
    run(replace(head, hidden=hidden), rows).loss.backward()
    assert torch.equal(head.weight.grad, grads(run(head, rows).loss, head)[1])


@pytest.mark.parametrize("V", [7, 50_257, 151_936, 248_320])
def test_odd_and_large_vocabularies_have_exact_gradients(V):
    head = make_head(3, 5, V, scale=3.0)
    rows = make_rows(head, 2)
    spec = LossSpec(entropy_coef=0.1)
    ours, exact = run(head, rows, spec), reference_loss(head, rows, spec)
    for a, b in zip(grads(ours.loss, head), grads(exact, head), strict=True):
        assert_close(a, b)


def test_more_rows_than_a_16_bit_grid_and_a_mask():
    head = make_head(65_537, 3, 5, dtype=torch.float32)
    rows = as_float32(make_rows(head, 9))
    out = run(head, rows)
    exact_head = head.to(torch.float64)
    exact = reference_loss(exact_head, rows, LossSpec())
    assert_close(out.loss.double(), exact, 1e-5)
    pairs = zip(grads(out.loss, head), grads(exact, exact_head), strict=True)
    for a, b in pairs:
        assert_close(a.double() / b.abs().max(), b / b.abs().max(), 1e-5)


def test_bitwise_repeatable():
    head = make_head(dtype=torch.float32)
    rows = as_float32(make_rows(head))
    spec = LossSpec(beta=0.1, entropy_coef=0.1)
    first, second = (grads(run(head, rows, spec).loss, head) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("chunk_bytes", [None, 7 * 33 * 8], ids=["one_chunk", "many_chunks"])
def test_a_callback_with_the_same_formula_gives_the_built_in_loss(chunk_bytes):
    def clipped(logps, entropy, tokens):
        ratio = (logps - tokens.old_logps).exp()
        kept = torch.minimum(ratio * tokens.advantages, ratio.clamp(0.8, 1.2) * tokens.advantages)
        return -kept - 0.1 * entropy

    head = make_head()
    rows = make_rows(head)
    ours = run(head, rows, loss_fn=clipped, chunk_bytes=chunk_bytes)
    built_in = run(head, rows, LossSpec(entropy_coef=0.1))
    assert_close(ours.loss, built_in.loss)
    for a, b in zip(grads(ours.loss, head), grads(built_in.loss, head), strict=True):
        assert_close(a, b)
    assert ours.metrics["num_tokens"] == built_in.metrics["num_tokens"]


def test_a_sequence_level_callback_sees_all_tokens_at_once():
    def gspo(logps, entropy, tokens):
        log_ratio = tokens.row_mean(logps - tokens.old_logps)[tokens.row]
        ratio = log_ratio.exp()
        A = tokens.advantages
        return -torch.minimum(ratio * A, ratio.clamp(0.8, 1.2) * A)

    head = make_head()
    rows = make_rows(head)
    ours = run(head, rows, loss_fn=gspo, loss_fn_needs_whole_rows=True, chunk_bytes=7 * 33 * 8)
    built_in = run(head, rows, LossSpec(loss_type="gspo", aggregation="token_mean"))
    assert_close(ours.loss, built_in.loss)
    for a, b in zip(grads(ours.loss, head), grads(built_in.loss, head), strict=True):
        assert_close(a, b)


def test_a_callback_that_reduces_is_refused():
    head = make_head()
    with pytest.raises(ValueError, match="do not reduce over tokens"):
        run(head, make_rows(head), loss_fn=lambda logps, entropy, tokens: -logps.sum())


def test_padded_rows_equal_packed_rows():
    head = make_head(24)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1, 4:] = False
    mask[3, 1:] = False
    advantages = torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    padded = LossRows.from_padded(mask=mask, advantages=advantages)
    packed = LossRows(
        row_of_token=torch.arange(4).repeat_interleave(6)[mask.view(-1)],
        num_rows=4,
        advantages=advantages,
    )
    keep = mask.view(-1)
    cut = Head(head.hidden[keep], head.weight, None, head.targets[keep], {})
    spec = LossSpec(loss_type="grpo")
    a = linear_grpo_loss(
        head.hidden.view(4, 6, -1), head.weight, head.targets.view(4, 6), rows=padded, spec=spec
    )
    assert a.logps.shape == (4, 6)
    assert_close(a.loss, run(cut, packed, spec).loss)


def test_metrics_split_by_row_type():
    head = make_head()
    rows = make_rows(head)
    out = run(head, rows, LossSpec(beta=0.1))
    human = rows.is_human[rows.row_of_token] & rows.completion_mask
    kept = rows.completion_mask
    assert out.metrics["num_tokens"] == kept.sum()
    assert out.metrics["num_human_tokens"] == human.sum()
    assert out.metrics["num_rows"] == len(rows.row_of_token[kept].unique())
    assert_close(out.metrics["sum_entropy_human"], out.entropy[human].sum())
    assert_close(out.metrics["sum_logp"], out.logps.sum())
    assert_close(out.metrics["sum_loss"], out.loss.detach())
    only = replace(rows, row_weight=rows.is_human.double(), denominator=float(kept.sum()))
    assert_close(out.metrics["sum_loss_human"], run(head, only, LossSpec(beta=0.1)).loss)


def test_human_rows_are_never_corrected_for_the_rollout_engine():
    head = make_head()
    rows = replace(make_rows(head), is_human=torch.ones(6, dtype=torch.bool))
    rows = replace(rows, rollout_logps=torch.full_like(rows.rollout_logps, torch.nan))
    for correction in ("token_truncate", "sequence_mask"):
        ours = run(head, rows, LossSpec(is_correction=correction)).loss
        assert torch.equal(ours, run(head, rows, LossSpec()).loss)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"ref_logps": None}, {"beta": 0.1}, "needs rows.ref_logps"),
        ({"rollout_logps": None}, {"is_correction": "token_mask"}, "needs rows.rollout_logps"),
        ({"is_human": None}, {"human_ratio": "luffy"}, "needs rows.is_human"),
        ({"advantages": torch.ones(5)}, {}, r"rows.advantages must have shape \(6,\) or \(40,\)"),
        ({"old_logps": torch.ones(3)}, {}, "rows.old_logps must have shape"),
        ({"num_rows": 4, "is_human": None, "advantages": torch.ones(4)}, {}, r"in \[0, 4\)"),
        ({"row_of_token": torch.zeros(40)}, {}, "must be int32 or int64"),
        ({"denominator": 0.0}, {}, "denominator must be above 0"),
        ({"token_index": torch.ones(40).bool()}, {}, r"token_index must be \(K,\) int64"),
    ],
)
def test_bad_rows_name_the_field_and_the_remedy(change, options, message):
    head = make_head()
    with pytest.raises(ValueError, match=message):
        run(head, replace(make_rows(head), **change), LossSpec(**options))


def test_a_spec_and_a_callback_together_are_refused():
    head = make_head()
    with pytest.raises(ValueError, match="spec or loss_fn, not both"):
        run(head, make_rows(head), LossSpec(), loss_fn=lambda *_: None)
