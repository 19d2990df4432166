"""The adapters beside what each project runs without them, on the CPU: time and peak memory.

    pytest benchmarks/bench_adapters.py --benchmark-only -s

Forward and backward of 4 rows of 256 tokens, D 256, V 32,768, bf16, a trainable head. verl's own
function is taken from an installed verl (its dependencies are not needed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Call, quantile, run_with_peak, take_turns
from benchmarks.result_table import Table
from polaris_kernels.adapters import liger, openrlhf, packed, verl

B, L, D, V = 4, 256, 256, 32_768
PLAIN = "plain torch: fp32 logits"
pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]


class Inputs:
    """Hidden states and a head, both leaves, and what the losses need."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(B, L, D, generator=g).bfloat16().requires_grad_()
        self.weight = (0.05 * torch.randn(V, D, generator=g)).bfloat16().requires_grad_()
        self.ids = torch.randint(V, (B, L), generator=g)
        self.mask = torch.ones(B, L, dtype=torch.long)
        self.advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])
        self.old = -torch.rand(B, L, generator=g) - 10.0

    def step(self, logps: Callable[[], Tensor]) -> Call:
        """Backward of a weighted sum of log-probs; `logps` may also be a loss."""

        def run() -> tuple[Tensor, ...]:
            found = logps()
            total = (
                found if not found.dim() else (found.view(B, L) * self.advantages[:, None]).sum()
            )
            return torch.autograd.grad(total, (self.hidden, self.weight))

        return Call(run)


def plain_logps(x: Inputs) -> Tensor:
    logits = F.linear(x.hidden, x.weight).float()
    return torch.log_softmax(logits, -1).gather(-1, x.ids.unsqueeze(-1)).squeeze(-1)


def openrlhf_candidates(x: Inputs) -> dict[str, Call]:
    from_logits = lambda: openrlhf.log_probs_from_logits(F.linear(x.hidden, x.weight), x.ids)
    from_hidden = lambda: openrlhf.log_probs_from_hidden(x.hidden, x.weight, x.ids).logps
    return {
        PLAIN: x.step(lambda: plain_logps(x)),
        "log_probs_from_logits": x.step(from_logits),
        "log_probs_from_hidden": x.step(from_hidden),
    }


def packed_candidates(x: Inputs) -> dict[str, Call]:
    ends = torch.arange(B + 1) * L
    head = packed.PackedHead(D, V, bias=False)
    head.weight = nn.Parameter(x.weight.detach())
    x.weight = head.weight
    flat = lambda: packed.packed_logps(x.hidden.view(-1, D), x.weight, x.ids.view(-1), ends).logps
    return {
        PLAIN: x.step(lambda: plain_logps(x)),
        "PackedHead": x.step(lambda: head(x.hidden, labels=x.ids)["logprobs"]),
        "packed_logps": x.step(flat),
    }


def verl_candidates(x: Inputs) -> dict[str, Call]:
    from tests.adapters.test_verl import verls_torch_head

    theirs = verls_torch_head().FusedLinearForPPO()
    return {
        "verl's torch backend": x.step(lambda: theirs(x.hidden, x.weight, x.ids, 1.0)[0]),
        "linear_cross_entropy": x.step(
            lambda: verl.linear_cross_entropy(x.hidden, x.weight, x.ids, 1.0)[0]
        ),
    }


def liger_candidates(x: Inputs) -> dict[str, Call]:
    chunked = pytest.importorskip("liger_kernel.chunked_loss")
    options: dict[str, Any] = {"beta": 0.0, "use_ref_model": False, "compiled": False}
    found = {}
    for name, cls in (
        ("Liger's LigerFusedLinearGRPOLoss", chunked.LigerFusedLinearGRPOLoss),
        ("LigerFusedLinearGRPOLoss", liger.LigerFusedLinearGRPOLoss),
    ):
        module = cls(**options)
        found[name] = x.step(
            lambda module=module: module(  # type: ignore[misc]
                x.hidden, x.weight, x.ids, x.mask, x.advantages, old_per_token_logps=x.old
            )[0]
        )
    return found


PROJECTS: dict[str, Callable[[Inputs], dict[str, Call]]] = {
    "OpenRLHF": openrlhf_candidates,
    "prime-rl, NeMo-RL": packed_candidates,
    "verl": verl_candidates,
    "Liger": liger_candidates,
}


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """Printed and kept when all projects are done."""
    columns = ("project", "candidate", "median ms", "first's ms / this", "peak MiB", "of first's")
    title = f"Forward and backward, {B * L:,} tokens, D {D}, V {V:,}, bf16, CPU, trainable head"
    found = Table("adapters", title, columns, num_keys=2)
    yield found
    found.finish()


@pytest.mark.parametrize("project", PROJECTS)
def test_adapter(benchmark: Any, table: Table, project: str) -> None:
    cpu = torch.device("cpu")
    calls = PROJECTS[project](Inputs())
    peaks = {name: run_with_peak(call, cpu)[1] for name, call in calls.items()}
    samples = benchmark.pedantic(
        take_turns,
        args=(calls, cpu),
        kwargs={"budget_s": 6.0, "min_rounds": 2, "max_rounds": 5},
        rounds=1,
    )
    first = next(iter(calls))
    medians = {name: quantile(ms, 0.5) for name, ms in samples.items()}
    for name in calls:
        peak, least = peaks[name], peaks[first]
        shown = ["not measured"] * 2
        if peak is not None and least is not None:
            shown = [f"{peak:,.0f}", f"{peak / least:.0%}"]
        ratio = f"{medians[first] / medians[name]:.1f}x"
        table.add(project, name, round(medians[name]), ratio, *shown)
    benchmark.extra_info.update(medians_ms=medians, peaks_mib=peaks)
