"""The Triton backend behind the public functions: values, gradients, chunks, dropped rows, waits.

On a machine without a GPU the kernels run in Triton's interpreter, so the problems are small.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from polaris_kernels import LossRows, LossSpec, grpo_loss, linear_grpo_loss, linear_logps
from polaris_kernels import rows as rows_module
from polaris_kernels import selective_logps as logits_logps
from polaris_kernels.backends import get_backend
from polaris_kernels.backends.base import Wanted
from polaris_kernels.objective import TokenGradients
from polaris_kernels.problem import make_problem
from polaris_kernels.testing import no_worse_than_torch

from .cases import Head, as_float32, assert_close, grads, make_head, make_rows, reference_loss

pytest.importorskip("triton")
from polaris_kernels.backends import triton_chunked, triton_gemm, triton_launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N, D, V = 14, 6, 37
BACKENDS = ("triton", "triton_compact")
EVERYTHING = {"return_entropy": True, "return_lse": True}
# five float64 rows of logits at a time, 48 columns each: three chunks, the last one shorter
FEW_ROWS = 5 * 48 * 8
# how logits become z, and the byte budget: None for one chunk
SCALINGS: dict[str, tuple[dict[str, Any], int | None]] = {
    "plain": ({}, FEW_ROWS),
    "softcap": ({"softcap": 5.0, "temperature": 0.8, "logit_scale": 1.3}, None),
    "per_token": ({"temperature": torch.linspace(0.5, 1.5, N, dtype=torch.float64)}, FEW_ROWS),
}


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    monkeypatch.setattr(triton_launch, "THREADS", 8)


def to_device(value: Any) -> Any:
    return value.to(DEVICE) if isinstance(value, (Tensor, LossRows)) else value


def moved(head: Head) -> Head:
    """Fresh leaves on the device under test."""
    leaves = [
        None if x is None else x.detach().to(DEVICE).requires_grad_()
        for x in (head.hidden, head.weight, head.bias)
    ]
    options = {k: to_device(v) for k, v in head.options.items()}
    return Head(leaves[0], leaves[1], leaves[2], head.targets.to(DEVICE), options)


def loss_of(head: Head, rows: LossRows, **options: Any) -> Any:
    options = {"backend": "triton"} | head.options | options
    return linear_grpo_loss(
        head.hidden, head.weight, head.targets, rows=to_device(rows), bias=head.bias, **options
    )


def logps_of(head: Head, **options: Any) -> Any:
    options = {"backend": "triton"} | EVERYTHING | head.options | options
    return linear_logps(head.hidden, head.weight, head.targets, bias=head.bias, **options)


def mixed(found: Any) -> Tensor:
    g = torch.Generator().manual_seed(3)
    values = [getattr(found, name) for name in ("logps", "entropy", "lse")]
    return sum((v * torch.randn(v.shape, generator=g).to(v)).sum() for v in values)


def assert_all_close(ours: Any, exact: Any, tolerance: float = 1e-11) -> None:
    for a, b in zip(ours, exact, strict=True):
        assert_close(a.cpu(), b, tolerance)


@pytest.mark.parametrize(("options", "chunk_bytes"), SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loss_matches_the_reference(backend, options, chunk_bytes):
    head = make_head(N, D, V, bias=True, **options)
    rows = make_rows(head, 4)
    spec = LossSpec(loss_type="gspo", beta=0.1, entropy_coef=0.05)
    here = moved(head)
    ours = loss_of(here, rows, spec=spec, backend=backend, chunk_bytes=chunk_bytes)
    exact = reference_loss(head, rows, spec)
    assert_close(ours.loss.cpu(), exact)
    assert_all_close(grads(ours.loss * 3, here), grads(exact * 3, head))


@pytest.mark.parametrize(("options", "chunk_bytes"), SCALINGS.values(), ids=SCALINGS)
def test_log_probs_match_the_reference_trained_and_frozen(options, chunk_bytes):
    head = make_head(N, D, V, bias=True, **options)
    here, exact = moved(head), head.plain()
    expected = grads(mixed(exact), head)
    ours = logps_of(here, chunk_bytes=chunk_bytes)
    assert_all_close((ours.logps, ours.entropy, ours.lse), (exact.logps, exact.entropy, exact.lse))
    assert_all_close(grads(mixed(ours), here), expected)
    frozen = replace(here, weight=here.weight.detach(), bias=here.bias.detach())
    found = torch.autograd.grad(mixed(logps_of(frozen, chunk_bytes=chunk_bytes)), here.hidden)
    assert_all_close(found, expected[:1])


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_results_may_be_changed_in_place(frozen):
    here = moved(make_head(N, D, V))
    here.weight.requires_grad_(not frozen)
    leaves = (here.hidden,) if frozen else (here.hidden, here.weight)
    expected = torch.autograd.grad(mixed(logps_of(here)), leaves)
    found = logps_of(here)
    total = mixed(found)
    for name in ("logps", "entropy", "lse"):
        value = getattr(found, name)
        assert value._base is None
        value.mul_(0)
    assert_all_close(torch.autograd.grad(total, leaves), expected)


@pytest.mark.parametrize("scale", [1.0, 20.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_worse_than_plain_torch_in_the_same_dtype(dtype, scale):
    exact_head = make_head(10, 16, 101, scale=scale / 4).to(dtype).to(torch.float64)
    head = exact_head.to(dtype)
    here = moved(head)
    exact, plain, ours = exact_head.plain(), head.plain(), logps_of(here)
    for name in ("logps", "entropy", "lse"):
        a, b, c = (getattr(x, name) for x in (ours, plain, exact))
        no_worse_than_torch(a.cpu(), b, c, name=name)
    pairs = ((ours, here), (plain, head), (exact, exact_head))
    triples = zip(*(grads(mixed(x), leaves) for x, leaves in pairs), strict=True)
    for a, b, c in triples:
        assert a.dtype == dtype
        no_worse_than_torch(a.cpu(), b, c)


@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
def test_bf16_logits_are_rounded_as_a_bf16_engine_rounds_them(bias):
    head = make_head(N, D, V, bias=bias, dtype=torch.bfloat16, scale=4.0, temperature=0.9)
    raw = head.hidden.float() @ head.weight.float().t()
    if bias:
        raw = raw + head.bias.float()
    expected = (raw.bfloat16().double() / 0.9).log_softmax(-1).gather(1, head.targets[:, None])
    ours = logps_of(moved(head), logits_dtype="bf16")
    assert_close(ours.logps.cpu().double(), expected[:, 0], 1e-5)
    ours.logps.sum().backward()


@pytest.mark.parametrize("wide", [True, False], ids=["wide_buffer", "narrow_buffer"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_weight_gradient_is_added_to_a_buffer(backend, wide):
    exact_head = make_head(N, D, V).to(torch.bfloat16).to(torch.float64)
    rows = make_rows(exact_head, 4)
    exact = grads(reference_loss(exact_head, rows, LossSpec()), exact_head)[1]
    plain_head = exact_head.to(torch.bfloat16)
    plain = grads(reference_loss(plain_head, as_float32(rows), LossSpec()), plain_head)[1]
    here = moved(plain_head)
    start = torch.ones(V, D, dtype=torch.float32 if wide else torch.bfloat16, device=DEVICE)
    here.weight.main_grad = start.clone()
    options = {"backend": backend, "accumulate_into": "main_grad", "chunk_bytes": 5 * 48 * 4}
    loss_of(here, as_float32(rows), **options).loss.backward()
    assert here.weight.grad is None and here.hidden.grad is not None
    no_worse_than_torch(here.weight.main_grad.cpu(), plain + start.cpu(), exact + 1)
    everything_masked = replace(as_float32(rows), completion_mask=torch.zeros(N))
    before = here.weight.main_grad.clone()
    loss_of(here, everything_masked, **options)
    assert torch.equal(here.weight.main_grad, before)


def test_a_callback_gets_its_gradient_through():
    head = make_head(N, D, V)
    rows = replace(make_rows(head, 4), old_logps=None)
    here = moved(head)
    ours = loss_of(here, rows, loss_fn=lambda logps, entropy, tokens: -tokens.advantages * logps)
    exact = reference_loss(head, rows, LossSpec(loss_type="reinforce"))
    assert_close(ours.loss.cpu(), exact)
    assert_all_close(grads(ours.loss, here), grads(exact, head))


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_masked_and_single_rows(backend):
    head = make_head(N, D, V)
    rows = make_rows(head, 4)
    for kept in (0, 1):
        here = moved(head)
        mask = torch.arange(N) < kept
        ours = loss_of(here, replace(rows, completion_mask=mask), backend=backend)
        assert ours.loss.isfinite()
        hidden, weight = grads(ours.loss, here)
        assert weight.isfinite().all() and (hidden[kept:] == 0).all()
        assert bool((weight != 0).any()) == bool(kept)


def test_masked_tokens_may_hold_anything_where_the_host_must_not_look(monkeypatch):
    monkeypatch.setattr(rows_module, "_is_host_memory", lambda value: False)
    head = make_head(N, D, V)
    rows = make_rows(head, 4)
    off = ~rows.completion_mask
    dirty = head.hidden.detach().masked_fill(off[:, None], torch.nan).requires_grad_()
    here = moved(replace(head, hidden=dirty))
    exact = reference_loss(head, rows, LossSpec())
    ours = loss_of(here, rows)
    assert_close(ours.loss.cpu(), exact)
    assert_all_close(grads(ours.loss, here), grads(exact, head))


def test_inputs_need_not_be_contiguous():
    head = make_head(N, D, V)
    wide = head.hidden.detach().repeat_interleave(2, 1).to(DEVICE).requires_grad_()
    weight = head.weight.detach().t().contiguous().to(DEVICE).requires_grad_()
    targets = head.targets.repeat_interleave(2).to(DEVICE)[::2]
    ours = linear_logps(wide[:, ::2], weight.t(), targets, backend="triton", **EVERYTHING)
    hidden, w = torch.autograd.grad(mixed(ours), (wide, weight))
    assert_all_close((hidden[:, ::2], w.t()), grads(mixed(head.plain()), head))


def test_bitwise_repeatable():
    head = moved(make_head(N, D, V, dtype=torch.bfloat16))
    runs = [grads(mixed(logps_of(head, chunk_bytes=FEW_ROWS)), head) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


# -- the second compaction


def problem_of(head: Head, chunk_bytes: int | None = None) -> Any:
    return make_problem(
        head.hidden, head.weight, head.targets, bias=None, temperature=1.0, softcap=None,
        logit_scale=1.0, logits_dtype="fp32", chunk_bytes=chunk_bytes, caller="test",
    )  # fmt: skip


def every_fifth(tokens: slice, statistics: Any) -> TokenGradients:
    """Coefficients that are 0 but for one token in five."""
    position = torch.arange(tokens.start, tokens.stop, device=statistics.logp.device)
    return TokenGradients(logp=torch.where(position % 5 == 2, 1.0, 0.0).to(statistics.logp))


@pytest.mark.parametrize("rows_a_chunk", [5, 30])
def test_dropped_rows_never_reach_the_back_gemms(monkeypatch, rows_a_chunk):
    seen = []
    add = triton_gemm.add_weight_gradient

    def watch(dz: Tensor, hidden: Tensor, out: Tensor, *, first: bool) -> None:
        seen.append(dz.shape[0])
        add(dz, hidden, out, first=first)

    monkeypatch.setattr(triton_gemm, "add_weight_gradient", watch)
    head = moved(make_head(30, D, V))
    problem = problem_of(head, int(rows_a_chunk * 48 * 8 * 1.5))
    wanted = Wanted(hidden=True, weight=True, bias=True)
    results = [
        get_backend(head.hidden.device, name).gradients(
            problem, every_fifth, wanted, entropy_gradient=False
        )[1]
        for name in BACKENDS
    ]
    # chunks of the dense backend are larger: its budget holds no second buffer
    assert sum(seen) == 30 + 6
    for name in ("hidden", "weight", "bias"):
        dense, compact = (getattr(r, name) for r in results)
        assert_close(compact, dense, name=name)


def test_many_kept_rows_and_graph_capture_stay_dense(monkeypatch):
    head = moved(make_head(N, D, V))
    problem = problem_of(head, FEW_ROWS)
    wanted = Wanted(hidden=True, weight=True, bias=False)

    def asked(coefficients: Any) -> int:
        counted = []
        non_zero = triton_chunked.rows_with_gradient

        def count(found: TokenGradients) -> Tensor | None:
            counted.append(1)
            return non_zero(found)

        with monkeypatch.context() as patch:
            patch.setattr(triton_chunked, "rows_with_gradient", count)
            backend = get_backend(head.hidden.device, "triton_compact")
            backend.gradients(problem, coefficients, wanted, entropy_gradient=False)
        return len(counted)

    everything = lambda tokens, s: TokenGradients(logp=torch.ones_like(s.logp))
    assert asked(everything) == triton_chunked.TritonBackend(drops_rows=True).num_chunks(problem)
    monkeypatch.setattr(triton_chunked, "_is_capturing", lambda device: True)
    assert asked(every_fifth) == 0


class Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


# operators whose result the host must wait for
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim"}


@pytest.mark.parametrize(("backend", "waits"), [("triton", 0), ("triton_compact", 3)])
def test_the_host_waits_once_a_chunk_at_most_and_only_when_asked_to(backend, waits):
    head = moved(make_head(N, D, V))
    problem = problem_of(head, FEW_ROWS if backend == "triton" else int(FEW_ROWS * 1.5))
    wanted = Wanted(hidden=True, weight=True, bias=True)
    chosen = get_backend(head.hidden.device, backend)
    assert chosen.num_chunks(problem) == 3
    with Operators() as seen:
        chosen.gradients(problem, every_fifth, wanted, entropy_gradient=False)
        chosen.statistics(problem)
        chosen.unit_gradients(problem, ("logp", "entropy"))
    assert sum(name in WAITS for name in seen.names) == waits
    assert "mm" in seen.names


# -- chunk sizes


@pytest.mark.parametrize(
    ("tokens", "hidden", "vocab", "budget", "count", "largest"),
    [
        (16_384, 4_096, 248_320, 2 * 2**30, 8, 2_048),
        (16_384, 4_096, 32_000, 2 * 2**30, 2, 8_192),
        (16_384, 1_024, 32_000, 2 * 2**30, 8, 2_048),
        (17_000, 4_096, 248_320, 2 * 2**30, 9, 1_920),
        (1, 4_096, 248_320, 2 * 2**30, 1, 1),
        (0, 4_096, 248_320, 2 * 2**30, 0, 0),
        (10, 4_096, 248_320, 1, 10, 1),
    ],
)
def test_chunks_are_as_large_as_the_budget_and_no_larger_than_twice_d(
    tokens, hidden, vocab, budget, count, largest
):
    # shapes alone: nothing of this size exists
    problem = replace(
        problem_of(make_head(1, D, V, dtype=torch.bfloat16)),
        hidden=torch.empty(tokens, hidden, dtype=torch.bfloat16, device="meta"),
        weight=torch.empty(vocab, hidden, dtype=torch.bfloat16, device="meta"),
        chunk_bytes=budget,
    )
    chunks = triton_chunked.TritonBackend()._chunks(problem)
    assert len(chunks) == count
    assert max((c.stop - c.start for c in chunks), default=0) == largest
    assert [c.start for c in chunks[1:]] == [c.stop for c in chunks[:-1]]
    assert not chunks or (chunks[0].start, chunks[-1].stop) == (0, tokens)


# -- logits that somebody else made


@pytest.mark.parametrize("inplace", [False, True], ids=["new_tensor", "inplace"])
@pytest.mark.parametrize("layout", ["packed", "one_more", "transposed"])
def test_log_probs_from_logits(layout, inplace):
    g = torch.Generator().manual_seed(0)
    lead, shape = ((2, 4), (2, 3)) if layout == "one_more" else ((5,), (5,))
    values = 3 * torch.randn(*lead, V, generator=g, dtype=torch.float64)
    targets = torch.randint(V, shape, generator=g)
    temperature = torch.linspace(0.5, 1.5, targets.numel(), dtype=torch.float64).view(shape)

    def outputs(logits: Tensor, backend: str) -> Any:
        given = logits.t().contiguous().t() if layout == "transposed" else logits * 1
        return logits_logps(
            given, targets.to(logits.device), temperature=temperature.to(logits.device),
            inplace=inplace, backend=backend, **EVERYTHING,
        )  # fmt: skip

    exact = values.clone().requires_grad_()
    ours = values.clone().to(DEVICE).requires_grad_()
    expected, found = outputs(exact, "torch"), outputs(ours, "triton")
    assert_all_close(found, expected)
    assert_all_close(
        torch.autograd.grad(mixed(found), ours), torch.autograd.grad(mixed(expected), exact)
    )


@pytest.mark.parametrize("hidden_from_host", [False, True], ids=["gathered", "masked_in_place"])
def test_the_loss_from_logits(monkeypatch, hidden_from_host):
    if hidden_from_host:
        monkeypatch.setattr(rows_module, "_is_host_memory", lambda value: False)
    head = make_head(N, D, V)
    rows = make_rows(head, 4)
    spec = LossSpec(loss_type="dapo", beta=0.1, entropy_coef=0.05)
    clean = (head.hidden @ head.weight.t()).detach()
    dirty = clean.masked_fill(~rows.completion_mask[:, None], torch.nan)
    ours = dirty.to(DEVICE).requires_grad_()
    loss = grpo_loss(
        ours, head.targets.to(DEVICE), rows=to_device(rows), spec=spec, backend="triton"
    ).loss
    exact = clean.clone().requires_grad_()
    theirs = grpo_loss(exact, head.targets, rows=rows, spec=spec, backend="torch").loss
    assert_close(loss.cpu(), theirs)
    assert_all_close(torch.autograd.grad(loss, ours), torch.autograd.grad(theirs, exact))


def test_entropies_changed_in_place_leave_the_gradient_alone():
    logits = torch.randn(N, V, dtype=torch.float64, device=DEVICE, requires_grad=True)
    targets = torch.arange(N, device=DEVICE)

    def total(change: bool) -> Tensor:
        found = logits_logps(logits, targets, backend="triton", **EVERYTHING)
        value = mixed(found)
        if change:
            found.entropy.detach().mul_(0)
        return value

    found, expected = (torch.autograd.grad(total(change), logits) for change in (True, False))
    assert torch.equal(*found, *expected)


def test_inplace_gradients_are_refused_to_other_users_of_the_logits():
    x = torch.randn(4, V, dtype=torch.float64, device=DEVICE, requires_grad=True)
    targets = torch.zeros(4, dtype=torch.long, device=DEVICE)
    logits = x * 1
    logits_logps(logits, targets, inplace=True, backend="triton").logps.sum().backward()
    assert torch.equal(logits.detach(), x.grad)
    capped = torch.tanh(x)  # its backward needs its own output
    loss = logits_logps(capped, targets, inplace=True, backend="triton").logps.sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_float32_loss_is_no_worse_than_plain_torch():
    exact_head = make_head(N, D, V, scale=0.5).to(torch.bfloat16).to(torch.float64)
    head = exact_head.to(torch.bfloat16)
    rows = as_float32(make_rows(exact_head, 4))
    spec = LossSpec(loss_type="cispo", epsilon_high=1.3, beta=0.05)
    exact, plain = reference_loss(exact_head, rows, spec), reference_loss(head, rows, spec)
    here = moved(head)
    ours = loss_of(here, rows, spec=spec).loss
    assert ours.dtype == torch.float32
    no_worse_than_torch(ours.cpu(), plain, exact)
    pairs = ((ours, here), (plain, head), (exact, exact_head))
    for a, b, c in zip(*(grads(x, leaves) for x, leaves in pairs), strict=True):
        no_worse_than_torch(a.cpu(), b, c)


def test_it_is_the_default_on_cuda(monkeypatch):
    monkeypatch.delenv("POLARIS_KERNELS_BACKEND", raising=False)
    assert get_backend(torch.device("cuda")).name == "triton"
