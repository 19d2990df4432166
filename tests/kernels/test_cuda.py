"""The head on a GPU, by the compiled CUDA kernels (its default there), by Triton and by torch: the
same numbers as the reference, eager and compiled, and no wait for the device inside a step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from polaris_kernels import (
    LossRows,
    LossSpec,
    VocabParallel,
    active_backend,
    available_backends,
    linear_grpo_loss,
    linear_logps,
)
from polaris_kernels.backends import ENVIRONMENT_KEY, cuda_library, get_backend
from polaris_kernels.testing import no_worse_than_torch

from .capture import capture
from .cases import Head, as_float32, assert_close, grads, make_head, make_rows, reference_loss
from .row_cases import PARTS, plain
from .row_cases import make_rows as make_logits

pytestmark = pytest.mark.gpu


def on_gpu(head: Head, dtype: torch.dtype) -> Head:
    moved = head.to(dtype)
    hidden, weight = (x.detach().cuda().requires_grad_() for x in (moved.hidden, moved.weight))
    return Head(hidden, weight, None, head.targets.cuda(), head.options)


@pytest.fixture(params=["cuda", "triton", "torch"])
def backend(request, monkeypatch):
    """The backend that calls without a `backend` argument get."""
    if request.param == "cuda":
        if not cuda_library.PATH.exists():
            pytest.skip(f"no {cuda_library.PATH.name}: {cuda_library.REBUILD}")
        # the default there: a probe that has refused the kernels fails the assertion below
        monkeypatch.delenv(ENVIRONMENT_KEY, raising=False)
    else:
        monkeypatch.setenv(ENVIRONMENT_KEY, request.param)
    assert active_backend("cuda") == request.param
    return request.param


@pytest.fixture
def no_sync():
    """Inside, an operation that makes the host wait for the device is an error."""

    @contextmanager
    def guarded() -> Iterator[None]:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return guarded


@pytest.mark.parametrize("chunk_bytes", [None, 100 * 211 * 8], ids=["one_chunk", "many_chunks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gathered", [True, False], ids=["gathered", "masked_in_place"])
@pytest.mark.parametrize("loss_type", ["dapo", "gspo"])
def test_loss_and_gradients(backend, loss_type, gathered, dtype, chunk_bytes):
    exact_head = make_head(300, 64, 211, scale=0.3).to(dtype).to(torch.float64)
    rows = as_float32(make_rows(exact_head))
    spec = LossSpec(loss_type=loss_type, beta=0.1, entropy_coef=0.01)
    plain_head = exact_head.to(dtype)
    exact, plain = reference_loss(exact_head, rows, spec), reference_loss(plain_head, rows, spec)
    index = rows.completion_mask.nonzero().squeeze(1) if gathered else None
    head = on_gpu(exact_head, dtype)
    out = linear_grpo_loss(
        head.hidden,
        head.weight,
        head.targets,
        rows=replace(rows, token_index=index).to("cuda"),
        spec=spec,
        chunk_bytes=chunk_bytes,
    )
    found = zip(grads(out.loss, head), grads(plain, plain_head), grads(exact, exact_head),
                strict=True)  # fmt: skip
    for a, b, c in found:
        no_worse_than_torch(a.cpu(), b, c)


def on_gpu_with_rows(gathered: bool = True) -> tuple[Head, LossRows]:
    plain = make_head(300, 64, 211)
    rows = as_float32(make_rows(plain))
    index = rows.completion_mask.nonzero().squeeze(1) if gathered else None
    rows = replace(rows, token_index=index, denominator=200.0)
    return on_gpu(plain, torch.bfloat16), rows.to("cuda")


def loss_of(head: Head, rows: LossRows, **options: Any) -> Any:
    return linear_grpo_loss(head.hidden, head.weight, head.targets, rows=rows, **options)


@pytest.mark.parametrize("gathered", [True, False], ids=["gathered", "masked_in_place"])
@pytest.mark.parametrize("loss_type", ["dapo", "gspo", "gmpo", "vespo"])
def test_a_step_never_waits_for_the_device(backend, no_sync, loss_type, gathered):
    head, rows = on_gpu_with_rows(gathered)
    spec = LossSpec(loss_type=loss_type, beta=0.1, is_correction="token_truncate")
    loss_of(head, rows, spec=spec)
    with no_sync():
        for chunk_bytes in (None, 100 * 211 * 8):
            out = loss_of(head, rows, spec=spec, chunk_bytes=chunk_bytes)
            (out.loss * 0.5).backward()
            with torch.no_grad():
                linear_logps(head.hidden, head.weight, head.targets, return_entropy=True)


def test_accumulation_adds_without_a_wait_and_without_a_second_buffer(backend, no_sync):
    head, rows = on_gpu_with_rows()
    expected = torch.autograd.grad(loss_of(head, rows).loss, head.weight)[0]
    head.weight.main_grad = torch.zeros_like(head.weight, dtype=torch.float32)
    scale = torch.full((), 0.5, device="cuda")
    with no_sync():
        for _ in range(2):
            out = loss_of(head, rows, grad_scale=scale, accumulate_into="main_grad")
            out.loss.backward()
    assert head.weight.grad is None and head.hidden.grad is not None
    assert_close(head.weight.main_grad, expected.float(), 1e-2)


@pytest.mark.parametrize("chunk_bytes", [None, 100 * 211 * 8], ids=["one_chunk", "many_chunks"])
@pytest.mark.parametrize("name", ["cuda", "triton", "triton_compact"])
def test_a_step_of_the_head_is_captured_in_a_graph(name, chunk_bytes):
    if name not in available_backends():
        pytest.skip(f"no {cuda_library.PATH.name}: {cuda_library.REBUILD}")
    head, rows = on_gpu_with_rows()
    spec = LossSpec(loss_type="dapo", beta=0.1, entropy_coef=0.01)

    def step() -> tuple[torch.Tensor, ...]:
        out = loss_of(head, rows, spec=spec, chunk_bytes=chunk_bytes, backend=name)
        return out.loss.detach(), *grads(out.loss, head)

    graph, captured = capture(step)
    with torch.no_grad():
        head.hidden.mul_(0.5)
    graph.replay()
    for found, eager in zip(captured, step(), strict=True):
        if name == "triton_compact":
            # which rows are kept is counted on the host: captured, the same step runs on all
            assert_close(found, eager, 1e-2)
        else:
            assert torch.equal(found, eager)


@pytest.mark.parametrize("gathered", [True, False], ids=["gathered", "masked_in_place"])
def test_a_compiled_caller_gets_the_eager_numbers(backend, gathered):
    head, rows = on_gpu_with_rows(gathered)
    spec = LossSpec(loss_type="gspo", beta=0.1, entropy_coef=0.01)
    torch._dynamo.reset()
    compiled = torch.compile(lambda: loss_of(head, rows, spec=spec), fullgraph=True)
    found, expected = compiled(), loss_of(head, rows, spec=spec)
    assert torch.equal(found.loss, expected.loss)
    pairs = zip(grads(found.loss, head), grads(expected.loss, head), strict=True)
    for a, b in pairs:
        assert torch.equal(a, b)


@pytest.fixture
def one_rank():
    dist.init_process_group(
        "nccl", rank=0, world_size=1, store=dist.HashStore(), device_id=torch.device("cuda", 0)
    )
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_sharded_vocabulary_merges_on_the_device(backend, one_rank, no_sync):
    head, rows = on_gpu_with_rows()
    vocab = VocabParallel.of_shard(head.weight, one_rank)
    options = {"chunk_bytes": 100 * 211 * 8}
    expected = grads(loss_of(head, rows, **options).loss, head)
    loss_of(head, rows, vocab=vocab)  # the communicator is made at its first use
    with no_sync():
        loss = loss_of(head, rows, vocab=vocab, **options).loss
        found = grads(loss, head)
    for a, b in zip(found, expected, strict=True):
        assert_close(a.float(), b.float(), 1e-2)


def test_bitwise_repeatable(backend):
    head, rows = on_gpu_with_rows()
    spec = LossSpec(loss_type="gspo")
    runs = [grads(loss_of(head, rows, spec=spec).loss, head) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


ROW_CASES = [
    (torch.float32, torch.bfloat16), (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
]  # fmt: skip


@pytest.fixture
def row_kernels():
    if not cuda_library.PATH.exists():
        pytest.skip(f"no {cuda_library.PATH.name}: {cuda_library.REBUILD}")
    return get_backend(torch.device("cuda"), "cuda").kernels


@pytest.mark.parametrize("V", [7, 1_003, 50_257, 151_936, 248_320, 600_001])
@pytest.mark.parametrize(("dtype", "out_dtype"), ROW_CASES, ids=str)
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "per_row": True, "bias": True}], ids=str)
def test_row_kernels_against_float64(row_kernels, options, dtype, out_dtype, V):
    from polaris_kernels.backends.triton_launch import RowState, Scaling, narrow_view
    from polaris_kernels.foreseen import RowRule
    from polaris_kernels.objective import TokenGradients

    rows = make_logits(5, V, dtype, **options)
    exact, exact_gradient = plain(rows, torch.float64)
    theirs, their_gradient = plain(rows, torch.float32)
    given = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in rows.options.items()}
    scaling = Scaling.make(given.pop("temperature"), **given)
    known = TokenGradients(*(getattr(rows.gradients, p).cuda() for p in PARTS))
    width = -(-V // 16) * 16
    results = []
    for cluster in (0, -1, 16):
        if cluster == 16 and torch.cuda.get_device_capability()[0] < 9:
            continue
        if cluster == 16 and V * dtype.itemsize > 16 * 220 * 1024:
            continue
        memory = torch.full((5, width), torch.nan, dtype=dtype, device="cuda")
        logits = memory[:, :V].copy_(rows.logits)
        state, out = RowState.empty(5, logits), narrow_view(logits, out_dtype)
        kernels = type(row_kernels)(row_kernels.library, cluster)
        kernels.both(logits, rows.targets.cuda(), scaling, state, RowRule(known), out)
        for name, a, b in zip(PARTS, theirs, exact, strict=True):
            no_worse_than_torch(getattr(state, name).cpu(), a, b, name=name)
        no_worse_than_torch(out.cpu(), their_gradient.to(out_dtype), exact_gradient)
        assert memory[:, V:].isnan().all()
        results.append(out.clone())
    # one read and two agree to the rounding of the result
    torch.testing.assert_close(results[0], results[1], rtol=1e-2, atol=1e-5)


def test_row_kernels_are_captured_in_a_graph(row_kernels):
    from polaris_kernels.backends.triton_launch import RowState, Scaling
    from polaris_kernels.foreseen import RowRule
    from polaris_kernels.objective import TokenGradients

    C, V = 64, 248_320
    source = torch.randn(C, V, device="cuda").bfloat16()
    targets, g = torch.arange(C, device="cuda"), torch.randn(C, device="cuda")
    logits, state = source.clone(), RowState.empty(C, source)

    def run() -> None:
        logits.copy_(source)
        row_kernels.both(
            logits, targets, Scaling.make(0.7), state, RowRule(TokenGradients(logp=g)), logits
        )

    run()
    expected = logits.clone(), state.logp.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    logits.zero_()
    state.logp.zero_()
    graph.replay()
    assert torch.equal(logits, expected[0]) and torch.equal(state.logp, expected[1])


def test_row_bases_are_64_bit_in_the_compiled_kernels(row_kernels):
    from polaris_kernels.backends.triton_launch import RowState, Scaling
    from polaris_kernels.foreseen import RowRule

    # the third row starts 2^31 elements behind the first
    stride = 2**30 + 64
    memory = torch.empty(2 * stride + 16, dtype=torch.bfloat16, device="cuda")
    logits = memory.as_strided((3, 7), (stride, 1))
    rows = make_logits(3, 7, torch.bfloat16)
    logits.copy_(rows.logits)
    given = replace(rows.gradients, **{p: getattr(rows.gradients, p).cuda() for p in PARTS})
    state = RowState.empty(3, logits)
    row_kernels.both(logits, rows.targets.cuda(), Scaling.make(1.0), state, RowRule(given), logits)
    exact = plain(rows, torch.float64)[1]
    assert (logits.double().cpu() - exact).abs().max() < 2e-2
