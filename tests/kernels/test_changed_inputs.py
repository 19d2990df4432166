"""What a backward reads again may not change before it: autograd must say so."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from polaris_kernels import LossRows, grpo_loss, linear_kl, linear_logps, selective_logps

pytestmark = pytest.mark.usefixtures("cpu_backend")

N, D, V = 6, 8, 20


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def logps_of_head(targets: Tensor, temperature: Tensor, _: Tensor) -> Tensor:
    return linear_logps(leaf(N, D), leaf(V, D, seed=1), targets, temperature=temperature).logps


def logps_of_logits(targets: Tensor, temperature: Tensor, _: Tensor) -> Tensor:
    return selective_logps(leaf(N, V), targets, temperature=temperature).logps


def loss_of_logits(targets: Tensor, temperature: Tensor, _: Tensor) -> Tensor:
    rows = LossRows(
        row_of_token=torch.arange(N) // 3, num_rows=2, advantages=torch.tensor([1.0, -1.0])
    )
    return grpo_loss(leaf(N, V), targets, rows=rows, temperature=temperature).loss


def exact_kl(_: Tensor, temperature: Tensor, ref_hidden: Tensor) -> Tensor:
    hidden, weight = leaf(N, D), leaf(V, D, seed=1)
    return linear_kl(
        hidden, weight, ref_hidden, leaf(V, D, seed=2).detach(), temperature=temperature
    )


CHANGES: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "targets": lambda targets, temperature, ref_hidden: targets.zero_(),
    "temperature": lambda targets, temperature, ref_hidden: temperature.fill_(2.0),
    "ref_hidden": lambda targets, temperature, ref_hidden: ref_hidden.zero_(),
}


@pytest.mark.parametrize(
    ("make", "changed"),
    [
        (logps_of_head, "targets"),
        (logps_of_head, "temperature"),
        (logps_of_logits, "targets"),
        (logps_of_logits, "temperature"),
        (loss_of_logits, "targets"),
        (loss_of_logits, "temperature"),
        (exact_kl, "temperature"),
        (exact_kl, "ref_hidden"),
    ],
    ids=lambda x: x if isinstance(x, str) else x.__name__,
)
def test_a_backward_after_a_change_in_place_is_refused(
    make: Callable[[Tensor, Tensor, Tensor], Tensor], changed: str
) -> None:
    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        return torch.arange(N) + 3, torch.full((N,), 0.7), leaf(N, D, seed=3).detach()

    make(*(untouched := inputs())).sum().backward()
    given = inputs()
    out = make(*given)
    CHANGES[changed](*given)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(untouched, inputs(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_temperatures_in_half_precision_are_refused(dtype: torch.dtype) -> None:
    temperature = torch.full((N,), 0.7)
    for narrow in (temperature.to(dtype), temperature[0].to(dtype)):
        with pytest.raises(ValueError, match=r"number or float32, got .*cast_forward_inputs"):
            logps_of_head(torch.arange(N), narrow, temperature)
