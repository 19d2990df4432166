"""What three gloo ranks check together: a head cut over the vocabulary, and one that FSDP2 shards.

`run_all` launches the ranks once; every rank runs every check, in order, against the result of one
process that holds the whole head.
"""

import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from polaris_kernels import FusedHead, LossSpec, VocabParallel, linear_grpo_loss, linear_logps
from polaris_kernels.testing import no_worse_than_torch

from .cases import Head, as_float32, assert_close, make_head, make_rows, reference_loss

# 37 ids over three ranks, neither even nor divisible
SIZES = (20, 11, 6)
N, D, V = 24, 5, sum(SIZES)
FEW_ROWS = 5 * 20 * 8
EVERYTHING = {"return_entropy": True, "return_lse": True}
SCALINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 5.0, "temperature": 0.8, "logit_scale": 1.3},
    "per_token": {"temperature": torch.linspace(0.5, 1.5, N, dtype=torch.float64)},
}
CHECKS: dict[str, Callable[["Ranks"], None]] = {}


class Ranks:
    """One rank's view of the group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        first = sum(SIZES[: self.rank])
        self.rows = slice(first, first + SIZES[self.rank])
        self.vocab = VocabParallel(group, SIZES, self.rank)

    def shard(self, head: Head) -> Head:
        """Fresh leaves with this rank's rows of the head."""
        hidden = head.hidden.detach().clone().requires_grad_()
        weight, bias = (
            None if x is None else x.detach()[self.rows].clone().requires_grad_(x.requires_grad)
            for x in (head.weight, head.bias)
        )
        return Head(hidden, weight, bias, head.targets, head.options)

    def own(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(hidden, weight, bias) gradients of the whole head, cut to this rank's rows."""
        return (gradients[0], *(g[self.rows] for g in gradients[1:]))

    def assert_same_bits(self, *values: Tensor) -> None:
        """Every rank holds the same values."""
        for value in values:
            every = [torch.empty_like(value) for _ in SIZES]
            dist.all_gather(every, value.detach().contiguous(), group=self.group)
            assert all(torch.equal(every[0], other) for other in every[1:])


def check(function: Callable[["Ranks"], None]) -> Callable[["Ranks"], None]:
    CHECKS[function.__name__] = function
    return function


def logps_of(head: Head, **options: Any) -> Any:
    options = EVERYTHING | head.options | options
    return linear_logps(head.hidden, head.weight, head.targets, bias=head.bias, **options)


def loss_of(head: Head, rows: Any, **options: Any) -> Any:
    options = head.options | options
    return linear_grpo_loss(
        head.hidden, head.weight, head.targets, rows=rows, bias=head.bias, **options
    )


def mixed(found: Any) -> Tensor:
    return sum((x * torch.linspace(0.5, 2, N).to(x)).sum() for x in found)


def gradients_of(value: Tensor, head: Head) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, [x for x in head.leaves if x.requires_grad])


@check
def every_rank_owns_a_target(ranks: Ranks) -> None:
    targets = make_head(N, D, V).targets
    assert ((targets >= ranks.rows.start) & (targets < ranks.rows.stop)).any()


@check
def log_probs_and_gradients(ranks: Ranks) -> None:
    for backend in ("torch", "native"):
        for options in SCALINGS.values():
            for chunk_bytes in (None, FEW_ROWS):
                whole = make_head(N, D, V, bias=True, **options)
                mine = ranks.shard(whole)
                given = {"backend": backend, "chunk_bytes": chunk_bytes}
                found = logps_of(mine, vocab=ranks.vocab, **given)
                exact = whole.plain()
                expected = (exact.logps, exact.entropy, exact.lse)
                for a, b in zip(found, expected, strict=True):
                    assert_close(a, b)
                made = gradients_of(mixed(found), mine)
                pairs = zip(made, ranks.own(gradients_of(mixed(expected), whole)), strict=True)
                for a, b in pairs:
                    assert_close(a, b)
                ranks.assert_same_bits(*found, made[0])
                with torch.no_grad():
                    quiet = logps_of(mine, vocab=ranks.vocab, **given)
                for a, b in zip(quiet, expected, strict=True):
                    assert_close(a, b)


@check
def a_frozen_head(ranks: Ranks) -> None:
    for options in SCALINGS.values():
        whole = make_head(N, D, V, **options)
        mine = ranks.shard(replace(whole, weight=whole.weight.detach()))
        found = logps_of(mine, vocab=ranks.vocab, chunk_bytes=FEW_ROWS)
        exact = whole.plain()
        expected = mixed((exact.logps, exact.entropy, exact.lse))
        (hidden,) = gradients_of(mixed(found), mine)
        assert_close(hidden, gradients_of(expected, whole)[0])
        ranks.assert_same_bits(hidden)


@check
def the_loss_and_its_gradients(ranks: Ranks) -> None:
    for backend in ("torch", "native"):
        for loss_type in ("dapo", "gspo"):
            for chunk_bytes in (None, FEW_ROWS):
                spec = LossSpec(loss_type=loss_type, beta=0.1, entropy_coef=0.05)
                whole = make_head(N, D, V, bias=True, softcap=6.0)
                rows = make_rows(whole)
                mine = ranks.shard(whole)
                given = {"backend": backend, "chunk_bytes": chunk_bytes, "vocab": ranks.vocab}
                found = loss_of(mine, rows, spec=spec, **given)
                exact = reference_loss(whole, rows, spec)
                assert_close(found.loss, exact)
                made = gradients_of(found.loss * 3, mine)
                pairs = zip(made, ranks.own(gradients_of(exact * 3, whole)), strict=True)
                for a, b in pairs:
                    assert_close(a, b)
                ranks.assert_same_bits(found.loss, made[0], *found.metrics.values())


@check
def a_shard_of_banned_ids_alone(ranks: Ranks) -> None:
    """Rows that pad the vocabulary may fill a whole shard; the loss is that of the other ids."""
    spec = LossSpec(beta=0.1, entropy_coef=0.05)
    kept = sum(SIZES[:2])
    drawn = make_head(N, D, V, bias=True)
    whole = replace(drawn, targets=drawn.targets % kept)
    rows = make_rows(whole)
    with torch.no_grad():
        whole.bias[kept:] = -torch.inf
    rest = replace(
        whole,
        weight=whole.weight.detach()[:kept].clone().requires_grad_(),
        bias=whole.bias.detach()[:kept].clone().requires_grad_(),
    )
    exact = reference_loss(rest, rows, spec)
    expected = gradients_of(exact, rest)
    for backend in ("torch", "native"):
        mine = ranks.shard(whole)
        given = {"backend": backend, "chunk_bytes": FEW_ROWS, "vocab": ranks.vocab}
        found = loss_of(mine, rows, spec=spec, **given)
        assert_close(found.loss, exact)
        made = gradients_of(found.loss, mine)
        assert_close(made[0], expected[0])
        for gradient, of_rest in zip(made[1:], expected[1:], strict=True):
            assert_close(gradient, of_rest[ranks.rows] if ranks.rank < 2 else 0 * gradient)
            assert gradient.isfinite().all()


@check
def a_callback(ranks: Ranks) -> None:
    whole = make_head(N, D, V)
    rows = make_rows(whole)
    mine = ranks.shard(whole)
    loss_fn = lambda logps, entropy, tokens: -tokens.advantages * logps - 0.1 * entropy
    found = loss_of(mine, rows, loss_fn=loss_fn, vocab=ranks.vocab, chunk_bytes=FEW_ROWS)
    exact = loss_of(whole, rows, loss_fn=loss_fn)
    assert_close(found.loss, exact.loss)
    pairs = zip(
        gradients_of(found.loss, mine), ranks.own(gradients_of(exact.loss, whole)), strict=True
    )
    for a, b in pairs:
        assert_close(a, b)


@check
def narrow_dtypes_are_no_worse_than_plain_torch(ranks: Ranks) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for backend in ("torch", "native"):
            exact_head = make_head(N, D, V, bias=True).to(dtype).to(torch.float64)
            plain_head = exact_head.to(dtype)
            rows = as_float32(make_rows(exact_head))
            spec = LossSpec(beta=0.1, entropy_coef=0.01)
            exact = reference_loss(exact_head, rows, spec)
            plain = reference_loss(plain_head, rows, spec)
            mine = ranks.shard(plain_head)
            found = loss_of(mine, rows, spec=spec, vocab=ranks.vocab, backend=backend)
            triples = zip(
                gradients_of(found.loss, mine),
                ranks.own(gradients_of(plain, plain_head)),
                ranks.own(gradients_of(exact, exact_head)),
                strict=True,
            )
            for a, b, c in triples:
                assert a.dtype == dtype
                no_worse_than_torch(a, b, c)


@check
def the_triton_kernels(ranks: Ranks) -> None:
    pytest.importorskip("triton")
    from polaris_kernels.backends import triton_launch

    triton_launch.THREADS = 8
    whole = make_head(6, D, V, bias=True, softcap=5.0)
    targets = torch.tensor([0, 19, 20, 30, 31, 36])
    whole = replace(whole, targets=targets)
    rows = make_rows(whole, 2)
    spec = LossSpec(entropy_coef=0.05)
    mine = ranks.shard(whole)
    given = {"backend": "triton", "chunk_bytes": 3 * 48 * 8, "vocab": ranks.vocab}
    found = loss_of(mine, rows, spec=spec, **given)
    exact = reference_loss(whole, rows, spec)
    assert_close(found.loss, exact)
    pairs = zip(gradients_of(found.loss, mine), ranks.own(gradients_of(exact, whole)), strict=True)
    for a, b in pairs:
        assert_close(a, b)


@check
def a_head_module_accumulates_into_main_grad(ranks: Ranks) -> None:
    whole = make_head(N, D, V, dtype=torch.float32)
    rows = as_float32(make_rows(whole))
    head = FusedHead.from_linear(nn.Linear(D, SIZES[ranks.rank], bias=False))
    with torch.no_grad():
        head.weight.copy_(whole.weight[ranks.rows])
    head.weight.main_grad = torch.zeros_like(head.weight)
    options = {"rows": rows, "vocab": ranks.vocab, "chunk_bytes": FEW_ROWS}
    for _ in range(2):
        out = head(
            whole.hidden.detach(), targets=whole.targets, accumulate_into="main_grad", **options
        )
    assert head.weight.grad is None and out.loss.requires_grad
    expected = gradients_of(loss_of(whole, rows).loss, whole)[1][ranks.rows]
    assert_close(head.weight.main_grad.double(), 2 * expected.double(), 1e-6)


@check
def no_tokens_at_all(ranks: Ranks) -> None:
    whole = make_head(N, D, V, bias=True)
    rows = replace(make_rows(whole), completion_mask=torch.zeros(N))
    mine = ranks.shard(whole)
    found = loss_of(mine, rows, vocab=ranks.vocab)
    assert found.loss == 0
    assert all((g == 0).all() for g in gradients_of(found.loss, mine))


@check
def the_group_is_asked_for_its_shards(ranks: Ranks) -> None:
    found = VocabParallel.of_shard(torch.empty(SIZES[ranks.rank], D), ranks.group)
    assert (found.sizes, found.rank, found.total) == (SIZES, ranks.rank, V)
    assert found.first_row == ranks.rows.start


@check
def an_empty_shard_is_refused_on_every_rank(ranks: Ranks) -> None:
    size = 0 if ranks.rank == 1 else 4
    with pytest.raises(ValueError, match=r"rank 1 of 3 holds 0 rows.*\(4, 0, 4\).*smaller group"):
        VocabParallel.of_shard(torch.empty(size, D), ranks.group)


@check
def bad_input_is_refused(ranks: Ranks) -> None:
    mine = ranks.shard(make_head(N, D, V))
    with pytest.raises(ValueError, match=r"targets must be in \[0, 37\), got 37 to 37"):
        logps_of(replace(mine, targets=torch.full((N,), V)), vocab=ranks.vocab)
    with pytest.raises(ValueError, match=rf"rank {ranks.rank}'s shard of {SIZES[ranks.rank]} rows"):
        logps_of(replace(mine, weight=torch.zeros(V, D)), vocab=ranks.vocab)


@check
def fsdp2_shards_the_head(ranks: Ranks) -> None:
    whole = make_head(N, D, V, dtype=torch.float32)
    rows = replace(as_float32(make_rows(whole)), denominator=20.0)
    exact = gradients_of(loss_of(whole, rows).loss, whole)[1]
    part = rows.row_of_token % 3 == ranks.rank
    own = replace(rows, completion_mask=rows.completion_mask & part)
    mesh = DeviceMesh.from_group(ranks.group, "cpu")
    for options in ({}, {"accumulate_into": "grad"}):
        head = FusedHead(D, V, bias=False)
        with torch.no_grad():
            head.weight.copy_(whole.weight)
        fully_shard(head, mesh=mesh, reshard_after_forward=True)
        for _ in range(2):
            hidden = whole.hidden.detach().requires_grad_()
            head(hidden, targets=whole.targets, rows=own, **options).loss.backward()
        # FSDP2 averages over ranks
        assert_close(head.weight.grad.full_tensor() * 3, 2 * exact, 1e-6, str(options))
        logps = head.logps(whole.hidden, targets=whole.targets).logps
        assert torch.equal(logps, logps_of(whole).logps)


def run_all(folder: Path) -> dict[str, str]:
    """Failures by check: the traceback of the first rank that has one, empty without any."""
    mp.spawn(_run_rank, (str(folder),), nprocs=len(SIZES))
    found: dict[str, str] = {}
    for rank in range(len(SIZES)):
        part: dict[str, str] = torch.load(folder / f"rank{rank}.pt")
        for name, trace in part.items():
            found[name] = found.get(name) or trace
    return found


def _run_rank(rank: int, folder: str) -> None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(SIZES)
    )
    group = dist.group.WORLD
    assert group is not None
    failures = {}
    for name, function in CHECKS.items():
        try:
            function(Ranks(group))
            failures[name] = ""
        except BaseException:
            failures[name] = f"rank {rank}: {traceback.format_exc()}"
            # the others may wait in a collective that this rank left
            break
    torch.save(failures, f"{folder}/rank{rank}.pt")
    if not any(failures.values()):
        dist.destroy_process_group()
