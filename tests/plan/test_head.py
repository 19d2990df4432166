"""The head's workspace as planned, and as a call leaves it.

Shapes: `N tokens . D hidden . V vocab`.
"""

import pytest
import torch

from polaris_fast.plan.head import head_bytes
from polaris_kernels import LossRows, linear_grpo_loss, release_workspace
from polaris_kernels.backends import native_library
from polaris_kernels.backends.workspace import _free_buffers

BUDGET = 128 * 2**20


@pytest.mark.skipif(not native_library.PATH.exists(), reason=native_library.REBUILD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("N,D,V", [(640, 64, 40_001), (300, 136, 9_001)], ids=["tiles", "chunk"])
def test_the_workspace_is_the_one_planned(N, D, V, dtype):
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, D, generator=g).to(dtype).requires_grad_() for n in (N, V))
    rows = LossRows(
        row_of_token=torch.zeros(N, dtype=torch.int64), num_rows=1, advantages=torch.ones(1)
    )
    release_workspace()
    linear_grpo_loss(
        hidden, weight, torch.randint(V, (N,), generator=g), rows=rows, chunk_bytes=BUDGET,
        backend="native",
    )  # fmt: skip
    kept = sum(x.numel() * x.element_size() for xs in _free_buffers().values() for x in xs)
    release_workspace()
    planned = head_bytes(
        N, D, V, dtype=dtype, logits_dtype="fp32", device="cpu", chunk_bytes=BUDGET
    )
    # a small buffer more or less: what rounds dW may find another one free
    assert kept == pytest.approx(planned.workspace, rel=0.05, abs=2**20)
    assert planned.num_chunks == 1 and planned.weight_gradient == dtype
