"""verl's `linear_cross_entropy` by its contract, against float64 and verl's own torch head.

Its Triton kernel needs CUDA. The torch head is read from an installed verl, none of whose
dependencies it needs (`pip install --no-deps verl`); without verl these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polaris_kernels import reference
from polaris_kernels.adapters.verl import linear_cross_entropy
from tests.ranks.launch import run

N, D, V = 23, 8, 51


def leaves(seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = (scale * torch.randn(N, D, generator=g, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).requires_grad_()
    return hidden, weight, torch.randint(V, (N,), generator=g)


def exact(
    hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    found = reference.token_logps(reference.logits(hidden, weight, temperature=temperature), labels)
    return found.logps, found.entropy


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["random", "peaked"])
@pytest.mark.parametrize("reduction", ["none", "sum", "MEAN", None])
@pytest.mark.parametrize("per_token", [False, True])
def test_values_and_gradients(scale: float, reduction: str | None, per_token: bool) -> None:
    hidden, weight, labels = leaves(scale=scale)
    temperature = torch.linspace(0.5, 2.0, N, dtype=torch.float64) if per_token else 0.7
    logps, entropy = linear_cross_entropy(hidden, weight, labels, temperature, reduction)
    true_logps, true_entropy = exact(hidden, weight, labels, temperature)
    if reduction not in (None, "none"):
        true_logps = true_logps.sum() if reduction == "sum" else true_logps.mean()
    torch.testing.assert_close(logps, true_logps)
    torch.testing.assert_close(entropy, true_entropy)
    g = torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def gradients(logps: Tensor, entropy: Tensor) -> tuple[Tensor, ...]:
        total = (logps * (g if logps.dim() else 1.0)).sum() + (entropy * g.flip(0)).sum()
        return torch.autograd.grad(total, (hidden, weight))

    for ours, truth in zip(
        gradients(logps, entropy), gradients(true_logps, true_entropy), strict=True
    ):
        torch.testing.assert_close(ours, truth)


def verls_torch_head() -> Any:
    """The module of verl's `FusedLinearForPPO`, without importing the package around it."""
    package = importlib.util.find_spec("verl")
    if package is None or package.origin is None:
        pytest.skip("needs verl: pip install --no-deps verl")
    path = Path(package.origin).parent / "utils/experimental/torch_functional.py"
    spec = importlib.util.spec_from_file_location("verls_torch_head", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["random", "peaked"])
def test_verls_own_torch_head_agrees(scale: float) -> None:
    theirs = verls_torch_head().FusedLinearForPPO(chunk_size=8)
    hidden, weight, labels = leaves(scale=scale)
    hidden, weight = (x.detach().float().requires_grad_() for x in (hidden, weight))
    g = torch.randn(2, N, generator=torch.Generator().manual_seed(1))
    found = []
    for function in (linear_cross_entropy, theirs):
        logps, entropy = function(hidden, weight, labels, 0.7)
        total = (logps * g[0]).sum() + (entropy * g[1]).sum()
        found.append((logps, entropy, *torch.autograd.grad(total, (hidden, weight))))
    for ours, peer in zip(*found, strict=True):
        # two float32 sums of peaked logits
        tolerance = 1e-3 if scale > 1 else 1e-5
        torch.testing.assert_close(ours, peer, rtol=tolerance, atol=tolerance)


def test_entropies_are_not_rounded_to_bf16() -> None:
    """verl's torch head returns them in the model's dtype, after bf16 logits."""
    theirs = verls_torch_head().FusedLinearForPPO()
    hidden, weight, labels = leaves(scale=4.0)
    narrow = [x.detach().bfloat16() for x in (hidden, weight)]
    truth = exact(*(x.double() for x in narrow), labels, 1.0)
    ours, peer = (
        [float((a - b).abs().max()) for a, b in zip(f(*narrow, labels, 1.0), truth, strict=True)]
        for f in (linear_cross_entropy, theirs)
    )
    print(f"bf16, largest error of log-prob, entropy: {ours} (verl's torch head: {peer})")
    assert max(ours) < 1e-4
    assert min(peer) > 2e-3, "verl keeps fp32 now: say so in docs/verl.md and drop this test"


def test_batches_come_back_flat_as_verls() -> None:
    hidden, weight, labels = leaves()
    logps, entropy = linear_cross_entropy(hidden[:20].view(4, 5, D), weight, labels[:20].view(4, 5))
    assert logps.shape == entropy.shape == (20,)
    none = linear_cross_entropy(hidden[:20], weight, labels[:20], None)
    torch.testing.assert_close(logps, none[0])
    tensor = linear_cross_entropy(hidden[:20], weight, labels[:20], torch.tensor([1.0]))
    torch.testing.assert_close(logps, tensor[0])


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(
        ValueError, match="reduction='median' is unknown; use one of none, sum, mean"
    ):
        linear_cross_entropy(*leaves(), reduction="median")


def test_two_tensor_parallel_ranks_sum_to_the_gradient() -> None:
    status, output = run("tests.adapters.verl_ranks")
    assert status == 0, output
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert len(found) == 2
    for errors in found:
        assert max(errors.values()) < 1e-12, errors
