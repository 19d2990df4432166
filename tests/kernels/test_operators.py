"""The operators of compiled graphs keep the rules of torch: schema, fake, autograd, dispatch."""

from typing import Any

import pytest
import torch

from polaris_kernels import LossSpec, available_backends, ops
from polaris_kernels.compiled import _pack_loss

from .cases import as_float32, make_head, make_rows

BACKENDS = [b for b in ("torch", "native") if b in available_backends()]


def arguments(backend: str, *, trained: bool = True) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    head = make_head(12, 4, 9, bias=True, dtype=torch.float32)
    leaves = head.leaves if trained else (head.hidden, *(x.detach() for x in head.leaves[1:]))
    temperatures = torch.linspace(0.5, 1.5, 12)
    options = (1.0, 5.0, 1.3, "fp32", 3 * 9 * 4, backend, torch.float32)
    return (*leaves, head.targets, temperatures), options


def loss_arguments() -> tuple[Any, ...]:
    head = make_head(12, 4, 9)
    spec = LossSpec(loss_type="gspo", beta=0.1, entropy_coef=0.1)
    return _pack_loss(as_float32(make_rows(head, 3)), spec, head.hidden)


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_log_probs(backend):
    head, options = arguments(backend)
    torch.library.opcheck(ops.linear_logps, (*head, *options))
    torch.library.opcheck(ops.linear_logps, (head[0], head[1], None, head[3], None, *options))


@pytest.mark.parametrize("outputs", [[True, False, False], [True, True, True]], ids=["logp", "all"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_log_probs_of_a_frozen_head(backend, outputs):
    head, options = arguments(backend, trained=False)
    torch.library.opcheck(ops.linear_logps_frozen, (*head, outputs, *options))


@pytest.mark.parametrize("wanted", [[True, True, True], [True, False, False]], ids=["all", "one"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_loss(backend, wanted):
    head, options = arguments(backend, trained=all(wanted))
    scale = torch.tensor(0.5)
    given = (*head, scale, *loss_arguments(), wanted, *options)
    torch.library.opcheck(ops.linear_grpo_loss, given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_and_log_probs_from_logits(backend):
    logits = torch.randn(3, 5, 9, requires_grad=True)
    targets = torch.randint(9, (3, 4))
    given = (logits, targets, torch.linspace(0.5, 1.5, 12).view(3, 4), 1.0, backend)
    torch.library.opcheck(ops.selective_logps, given)
    torch.library.opcheck(ops.grpo_loss, (*given, *loss_arguments()))


def test_a_loss_reads_its_inputs_by_name():
    head, options = arguments("torch")
    rows, names, *rest = loss_arguments()
    given = (*head, None, rows, names, *rest, [False] * 3, *options)
    shuffled = (*head, None, rows[::-1], ",".join(names.split(",")[::-1]), *rest, [False] * 3)
    for a, b in zip(
        ops.linear_grpo_loss(*given)[:4],
        ops.linear_grpo_loss(*shuffled, *options)[:4],
        strict=True,
    ):
        assert torch.equal(a, b)
