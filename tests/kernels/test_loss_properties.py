"""Any spec, any shape, any mask: loss and gradients of the fused head equal the reference's."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from polaris_kernels import LossSpec, linear_grpo_loss
from polaris_kernels.spec import (
    AGGREGATIONS,
    CLIPPED_LOSSES,
    COVARIANCE_LOSSES,
    IS_CORRECTIONS,
    KL_ESTIMATORS,
    LOSS_TYPES,
)

from .cases import assert_close, grads, make_head, make_rows, reference_loss, selection_is_clear

pytestmark = pytest.mark.usefixtures("cpu_backend")

NEEDED = {
    "cispo": {"epsilon_high": 1.3, "ratio_floor": 0.8},
    "dr_grpo": {"max_completion_length": 20},
}


@st.composite
def specs(draw: st.DrawFn) -> LossSpec:
    loss_type = draw(st.sampled_from(LOSS_TYPES))
    options: dict[str, Any] = dict(NEEDED.get(loss_type, {}))
    levels = [None, "token", "sequence", "sequence_token"]
    if loss_type in CLIPPED_LOSSES:
        options["epsilon_high"] = draw(st.sampled_from([None, 0.1, 0.4]))
        options["delta"] = draw(st.sampled_from([None, 1.5]))
    if loss_type in (*CLIPPED_LOSSES, "cispo", "sapo"):
        options["ratio_level"] = draw(
            st.sampled_from([x for x in levels if loss_type != "gspo" or x != "token"])
        )
    if loss_type.startswith("dppo"):
        options["epsilon"] = draw(st.sampled_from([0.001, 0.02]))
        options |= {"epsilon_high": draw(st.sampled_from([None, 0.004])), "ratio_cap": 1.2}
    if loss_type == "clip_cov":
        options |= {"clip_cov_lb": draw(st.sampled_from([-0.5, 0.0])), "clip_cov_ub": 2.0}
        options["epsilon_high"] = 0.1
    if loss_type in COVARIANCE_LOSSES:
        options[f"{loss_type}_ratio"] = draw(st.sampled_from([0.01, 0.3, 1.0]))
        options["kl_cov_coef"] = 0.7
    corrections = [
        c for c in IS_CORRECTIONS if loss_type != "vespo" or c.startswith(("none", "token"))
    ]
    common: dict[str, Any] = {
        "epsilon": draw(st.sampled_from([0.05, 0.2])),
        "aggregation": draw(st.sampled_from([None, *AGGREGATIONS])),
        "beta": draw(st.sampled_from([0.0, 0.1])),
        "kl_estimator": draw(st.sampled_from(KL_ESTIMATORS)),
        "kl_importance_correction": loss_type != "gmpo" and draw(st.booleans()),
        "entropy_coef": draw(st.sampled_from([0.0, 0.05])),
        "top_entropy_quantile": draw(st.sampled_from([1.0, 1.0, 0.0, 0.2, 0.7])),
        "is_correction": draw(st.sampled_from(corrections)),
        "is_cap": draw(st.sampled_from([1.1, 2.0, None])),
        "is_floor": draw(st.sampled_from([None, 0.8])),
        "off_policy_mask_threshold": draw(st.sampled_from([None, 0.02])),
        "human_ratio": draw(st.sampled_from(["same", "luffy"])),
    }
    return LossSpec(loss_type=loss_type, **(common | options))


@settings(max_examples=200, deadline=None)
@given(
    spec=specs(),
    seed=st.integers(0, 10_000),
    N=st.integers(0, 40),
    R=st.integers(1, 6),
    V=st.integers(2, 40),
    chunk_tokens=st.sampled_from([1, 7, 1000]),
    mask=st.sampled_from(["none", "some", "one", "all"]),
    moved=st.booleans(),
    per_token=st.booleans(),
    weighted=st.booleans(),
    strided=st.booleans(),
    entropy_threshold=st.sampled_from([None, 1.0]),
    denominator=st.sampled_from([None, 100.0]),
    softcap=st.sampled_from([None, 4.0]),
)
def test_any_spec_shape_and_mask_matches_the_reference(
    spec, seed, N, R, V, chunk_tokens, mask, moved, per_token, weighted, strided,
    entropy_threshold, denominator, softcap,
):  # fmt: skip
    head = make_head(N, 5, V, bias=True, seed=seed, temperature=0.9, softcap=softcap)
    rows = make_rows(head, R, seed=seed)
    g = torch.Generator().manual_seed(seed)
    kept = {"none": None, "some": rows.completion_mask, "all": torch.zeros(N)}
    rows = replace(
        rows,
        old_logps=rows.old_logps if moved else None,
        # one number a row is what an ambiguous length means
        advantages=torch.randn(N if per_token and N != R else R, generator=g, dtype=torch.float64),
        completion_mask=kept.get(mask, torch.arange(N) == N // 2),
        row_weight=torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 1.0])[:R] if weighted else None,
        entropy_threshold=entropy_threshold if spec.top_entropy_quantile < 1.0 else None,
        denominator=denominator,
    )
    assume(selection_is_clear(head, rows, spec))
    hidden, weight = head.hidden, head.weight
    if strided:
        # every other row and column of a larger tensor, in the caller's graph
        hidden = torch.stack([hidden, hidden * 2], 1).flatten(0, 1)[::2]
        weight = torch.stack([weight, weight * 2], 2).flatten(1, 2)[:, ::2]
        assert not weight.is_contiguous()
    ours = linear_grpo_loss(
        hidden,
        weight,
        head.targets,
        rows=rows,
        spec=spec,
        bias=head.bias,
        chunk_bytes=chunk_tokens * V * 8,
        **head.options,
    )
    exact = reference_loss(head, rows, spec)
    assert_close(ours.loss, exact, 1e-10)
    found = grads(ours.loss, head)
    if exact.requires_grad:
        for a, b in zip(found, grads(exact, head), strict=True):
            assert_close(a, b, 1e-10)
    else:
        assert all((gradient == 0).all() for gradient in found)
