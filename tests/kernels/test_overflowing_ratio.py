"""Policy and old policy so far apart that their ratio overflows float32: a token that the clip has
switched off, or that has no advantage, leaves the gradient of all others alone.

Shapes: `N tokens . D hidden . V vocab`.
"""

from dataclasses import replace

import pytest
import torch

from polaris_kernels import LossSpec, linear_grpo_loss

from .cases import as_float32, grads, make_head, make_rows

pytestmark = pytest.mark.usefixtures("every_backend")

N, D, V = 14, 6, 208
SPECS = {
    "dapo": LossSpec(),
    "entropy": LossSpec(entropy_coef=0.05),
    "delta": LossSpec(delta=1.5),
    "gspo": LossSpec(loss_type="gspo"),
    "sapo": LossSpec(loss_type="sapo"),
    "cispo": LossSpec(loss_type="cispo", epsilon_high=1.5),
}


@pytest.mark.parametrize("name", SPECS)
def test_tokens_without_a_slope_leave_the_gradient_alone(name):
    head = make_head(N, D, V, dtype=torch.float32, scale=0.3)
    rows = replace(as_float32(make_rows(head, 4)), completion_mask=None)
    sign = torch.where(torch.arange(4) % 2 == 0, 1.0, 0.0)[rows.row_of_token]
    far = torch.arange(N) % 3 == 0
    # -0.5 where a token is near: the two kinds share no row of a sequence ratio
    if name == "gspo":
        far = torch.ones(N, dtype=torch.bool)
    advantages = torch.where(far, sign, -0.5)
    results = []
    for distance in (30.0, 200.0):
        given = replace(
            rows,
            advantages=advantages,
            old_logps=torch.where(far, rows.old_logps - distance, rows.old_logps),
        )
        loss = linear_grpo_loss(
            head.hidden, head.weight, head.targets, rows=given, spec=SPECS[name]
        ).loss
        results.append((loss, *grads(loss, head)))
    for near, overflowed in zip(*results, strict=True):
        assert overflowed.isfinite().all()
        torch.testing.assert_close(overflowed, near)
