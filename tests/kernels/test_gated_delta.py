"""The gated delta rule's Triton kernels against a float64 recurrence, value and gradients.

Without a GPU they run in Triton's interpreter, on head dims of 16 and chunks of 32.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import polaris_kernels
from polaris_kernels.gated_delta import RowChunks, gated_delta_rule
from polaris_kernels.gated_delta.reference import (
    chunk_backward,
    chunk_forward,
    recurrent_reference,
)
from polaris_kernels.testing import error_sizes, no_worse_than_torch

from .capture import capture

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("out", "d q", "d k", "d v", "d g", "d beta")

REPORT = """
import json
import torch
from dataclasses import asdict
from polaris_kernels.gated_delta.report import report
print(json.dumps([asdict(r) for r in report({arguments})]))
"""
# of a block, in bytes
MOST_SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@pytest.fixture(autouse=True)
def interpreter_multiplies_bf16(monkeypatch):
    """Triton's interpreter holds bf16 as 16-bit integers and multiplies those."""
    if DEVICE == "cuda":
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    def widened(x):
        if x.dtype.scalar == tl.bfloat16:
            return (x.data.astype(np.uint32) << 16).view(np.float32)
        return x.data

    def create_dot(self, a, b, d, *options):
        made = np.matmul(widened(a), widened(b), dtype=d.data.dtype)
        return interpreter.TensorHandle(made + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def make_inputs(
    T: int, key_heads: int = 1, group: int = 1, K: int = 16, V: int = 16, seed: int = 0
) -> list[Tensor]:
    """q, k, v, g, beta and d loss / d out, float64."""
    g = torch.Generator().manual_seed(seed)
    heads = key_heads * group

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    decay = -normal(T, heads).exp()  # from almost none to almost everything forgotten
    return [
        normal(T, key_heads, K), normal(T, key_heads, K), normal(T, heads, V), decay,
        normal(T, heads).sigmoid(), normal(T, heads, V),
    ]  # fmt: skip


def run(rule, inputs: list[Tensor]) -> list[Tensor]:
    *tensors, upstream = inputs
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = rule(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def kernels(rows: tuple[int, ...], inputs: list[Tensor], chunk_size: int = 32) -> list[Tensor]:
    table = RowChunks.from_lengths(rows, DEVICE, chunk_size=chunk_size)
    made = run(lambda *x: gated_delta_rule(*x, table), [x.to(DEVICE) for x in inputs])
    return [x.cpu() for x in made]


def check(
    rows: tuple[int, ...], inputs: list[Tensor], *, factor: float = 2.0, chunk_size: int = 32
) -> None:
    exact = run(lambda *x: recurrent_reference(*x, rows), inputs)
    plain = run(lambda *x: recurrent_reference(*x, rows), [x.float() for x in inputs])
    made = kernels(rows, [x.float() for x in inputs], chunk_size)
    for name, ours, theirs, truth in zip(NAMES, made, plain, exact, strict=True):
        no_worse_than_torch(ours, theirs, truth, name=name, factor=factor)


def test_chunk_equations_are_the_recurrence_and_its_gradients():
    C, K, V, heads = 7, 4, 5, 3
    g = torch.Generator().manual_seed(0)
    q, k, v, upstream, ahead, state = (
        torch.randn(heads, *shape, generator=g, dtype=torch.float64)
        for shape in ((C, K), (C, K), (C, V), (C, V), (K, V), (K, V))
    )
    decay = -torch.randn(heads, C, generator=g, dtype=torch.float64).exp()
    beta = torch.rand(heads, C, generator=g, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (q, k / k.norm(dim=-1, keepdim=True), v, decay, beta)]
    leaves = [x.detach().requires_grad_() for x in (*leaves, state)]
    outs, carried = [], leaves[5]
    for t in range(C):
        q_t, k_t, v_t, g_t, beta_t = (x[:, t] for x in leaves[:5])
        carried = carried * g_t.exp()[:, None, None]
        write = beta_t[:, None] * (v_t - torch.einsum("hkv,hk->hv", carried, k_t))
        carried = carried + torch.einsum("hk,hv->hkv", k_t, write)
        outs.append(torch.einsum("hkv,hk->hv", carried, q_t))
    with torch.no_grad():
        out, u, after = chunk_forward(*leaves)
        made = chunk_backward(*leaves, u, upstream, ahead)
    torch.testing.assert_close(out, torch.stack(outs, 1))
    torch.testing.assert_close(after, carried)
    wanted = torch.autograd.grad([torch.stack(outs, 1), carried], leaves, [upstream, ahead])
    for ours, want in zip(made, wanted, strict=True):
        torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("rows", [(1,), (32,), (5, 1, 40)], ids=str)
def test_no_worse_than_the_fp32_recurrence(rows):
    check(rows, make_inputs(sum(rows)))


def test_groups_of_value_heads_and_odd_head_dims():
    check((20,), make_inputs(20, key_heads=2, group=2, K=20, V=36))


def test_chunks_of_64():
    check((70, 2), make_inputs(72), chunk_size=64)


def test_strengths_and_decays_at_their_ends():
    inputs = make_inputs(40)
    inputs[4] = (inputs[4] > 0.5).double()  # write nothing, or all
    # nothing forgotten, and single steps that matter beside sums of hundreds
    inputs[3] = torch.where(torch.arange(40)[:, None] % 5 == 0, -60.0, 0.0).double()
    inputs[3][-4:] = -0.01
    check((40,), inputs)


def test_equal_keys_do_not_blow_up():
    # entries of the system near 1: powers of it would reach 10^7 in a chunk of 32
    inputs = make_inputs(32)
    inputs[1] = inputs[1][:1].expand_as(inputs[1]).contiguous()
    inputs[3], inputs[4] = inputs[3] * 0 - 0.01, inputs[4] * 0 + 0.95
    # d g is small beside the pairs it is a difference of
    check((32,), inputs, factor=8.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_inputs(dtype):
    rows = (33, 4)
    inputs = [x.to(dtype).double() for x in make_inputs(sum(rows))]
    exact = run(lambda *x: recurrent_reference(*x, rows), inputs)
    made = kernels(rows, [x.to(dtype) for x in inputs])
    # the interpreter truncates where a GPU rounds
    eps = torch.finfo(dtype).eps
    for name, ours, truth in zip(NAMES, made, exact, strict=True):
        assert ours.dtype == dtype
        largest, rms = error_sizes(ours, truth)
        assert largest < 8 * eps and rms < 2 * eps, name


def test_views_of_one_projection_and_rows_alone_give_the_same_bits():
    rows, (q, k, v, g, beta, upstream) = (33, 9), [x.float() for x in make_inputs(42)]
    together = kernels(rows, [q, k, v, g, beta, upstream])
    joined = torch.cat([x.flatten(1) for x in (q, k, v)], dim=1)
    views = joined.split([16, 16, 16], dim=1)
    views = [x.unflatten(1, (-1, 16)) for x in views]
    for a, b in zip(together, kernels(rows, [*views, g, beta, upstream]), strict=True):
        assert torch.equal(a, b)
    alone = kernels((9,), [x[33:] for x in (q, k, v, g, beta, upstream)])
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[33:], b)


def test_transformers_computes_the_same():
    transformers = pytest.importorskip("transformers.models.qwen3_5.modeling_qwen3_5")
    q, k, v, g, beta, upstream = [x.float() for x in make_inputs(45)]

    def theirs(*tensors: Tensor) -> Tensor:
        heads = [x[None] for x in tensors]
        rule = transformers.torch_chunk_gated_delta_rule
        return rule(*heads, use_qk_l2norm_in_kernel=True)[0][0]

    wanted = run(theirs, [q, k, v, g, beta, upstream])
    made = kernels((45,), [q, k, v, g, beta, upstream])
    for ours, want in zip(made, wanted, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4)


def test_tables_cut_rows_into_chunks():
    table = RowChunks.from_lengths((70, 1, 64), "cpu")
    assert table.first.tolist() == [0, 64, 70, 71]
    assert table.length.tolist() == [64, 6, 1, 64]
    assert table.order.tolist() == [0, 2, 1]
    assert table.row_start.tolist() == [0, 70, 71, 135]
    assert table.row_chunk.tolist() == [0, 2, 3, 4]
    assert (table.num_tokens, table.num_chunks, table.num_rows) == (135, 4, 3)
    with pytest.raises(ValueError, match="at least one token"):
        RowChunks.from_lengths((3, 0), "cpu")
    with pytest.raises(ValueError, match="power of two from 32 on, got 48"):
        RowChunks.from_lengths((3,), "cpu", chunk_size=48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(5, 1, 8)}, r"q and k must be \(T, H, K\)"),
        ({"v": torch.zeros(4, 1, 16)}, r"v must be \(T, H \* G, V\)"),
        ({"g": torch.zeros(5, 2)}, r"g must be \(T, H \* G\) = \(5, 1\), got \(5, 2\)"),
        ({"q": torch.zeros(5, 1, 16).double()}, "share one of bf16, fp16 and fp32"),
        ({"rows": RowChunks.from_lengths((4,), "cpu")}, "rows hold 4 tokens, q has 5"),
        (
            {"q": torch.zeros(5, 1, 160), "k": torch.zeros(5, 1, 160)},
            "K must be at most 128, got 160",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    q, k, v, g, beta, _ = [x.float() for x in make_inputs(5)]
    given = {"q": q, "k": k, "v": v, "g": g, "beta": beta}
    given["rows"] = RowChunks.from_lengths((5,), "cpu")
    with pytest.raises(ValueError, match=message):
        gated_delta_rule(**(given | change))


def test_cpu_tensors_need_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    inputs = [x.float() for x in make_inputs(5)][:5]
    with pytest.raises(ValueError, match="need CUDA tensors, got CPU ones; move them"):
        gated_delta_rule(*inputs, RowChunks.from_lengths((5,), "cpu"))


def test_a_profiler_is_told_operations_and_bytes():
    from polaris_kernels.gated_delta import work

    kernel = SimpleNamespace(name="delta_kernel")
    write, state = torch.empty(40, 2, 16, dtype=torch.bfloat16), torch.empty(2, 2, 16, 16)
    sizes = {"CHUNK": 32, "K": 16, "V": 16, "G": 2}
    given = {**sizes, "write_ptr": write, "state_ptr": state, "stride_kt": 16, "scale": 0.25}
    # two chunks of 32, two heads: q k^T, q S and P u
    told = work.output_work((2, 2), kernel, given)
    assert told["flops"] == 4 * 2 * 32 * (32 * 16 + 16 * 16 + 32 * 16)
    assert told["bytes"] == 40 * 2 * 16 * 2 + 2 * 2 * 16 * 16 * 4
    assert told["name"] == "delta_kernel_N2"
    # 40 tokens and two heads, three products; `write` is read and written
    told = work.reverse_scan_work((2,), kernel, given)
    assert told["flops"] == 3 * 2 * 40 * 2 * 16 * 16
    assert told["bytes"] == 2 * 40 * 2 * 16 * 2 + 2 * 2 * 16 * 16 * 4
    # k k^T in three of four quarters, then 18 products of 16 x 16 a value head
    assert work.system_work((1, 1), kernel, given)["flops"] == 3 * 2 * 16**3 + 2 * 14 * 2 * 16**3


def test_every_kernel_has_a_profilers_text():
    source = Path(polaris_kernels.__file__).parent / "gated_delta"
    text = "".join(path.read_text() for path in sorted(source.glob("*_kernels.py")))
    assert text.count("launch_metadata=") == text.count("_kernel(") == 9


def test_odd_strides_are_copied_and_give_the_same_bits():
    tensors = [x.float() for x in make_inputs(20)]
    wanted = kernels((20,), tensors)
    wide = [torch.nn.functional.pad(x, (1, 2)) for x in tensors]
    views = [x[..., 1:-2] for x in wide]
    for ours, want in zip(kernels((20,), views), wanted, strict=True):
        assert torch.equal(ours, want)


# the Qwen3.5 models' heads everywhere, others where registers are fewest
@pytest.mark.parametrize(
    "arguments",
    [
        *(f"({arch},)" for arch in MOST_SHARED),
        "(80,), dtype=torch.float16, group=1, head_dims=(64, 128)",
    ],
)
def test_no_kernel_spills_and_all_fit_shared_memory(arguments, tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": str(Path(polaris_kernels.__file__).parent.parent),
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    script = REPORT.format(arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 9
    for kernel in found:
        assert kernel["spill_bytes"] == 0, kernel
        assert kernel["shared_bytes"] <= MOST_SHARED[kernel["arch"]], kernel


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_on_a_gpu_at_the_models_head_dims(dtype):
    rows = (300, 1, 64, 129)
    inputs = [x.to(dtype).double() for x in make_inputs(sum(rows), 4, 2, 128, 128)]
    exact = run(lambda *x: recurrent_reference(*x, rows), inputs)
    made = kernels(rows, [x.to(dtype) for x in inputs], chunk_size=64)
    for name, ours, truth in zip(NAMES, made, exact, strict=True):
        error = float((ours.double() - truth).norm() / truth.norm())
        assert error < (1e-4 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps), name


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_and_bits_repeat():
    inputs = [x.bfloat16().cuda() for x in make_inputs(500, 4, 2, 128, 128)]
    table = RowChunks.from_lengths((400, 100), "cuda")
    first = run(lambda *x: gated_delta_rule(*x, table), inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = run(lambda *x: gated_delta_rule(*x, table), inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
def test_on_a_gpu_forward_and_backward_are_captured_in_a_graph():
    inputs = [x.bfloat16().cuda() for x in make_inputs(300, 4, 2, 128, 128)]
    table = RowChunks.from_lengths((200, 100), "cuda")
    step = lambda: run(lambda *x: gated_delta_rule(*x, table), inputs)
    graph, captured = capture(step)
    inputs[2].mul_(0.5)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))
