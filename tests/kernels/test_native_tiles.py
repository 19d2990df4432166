"""The native backend's form for narrow heads: the same numbers, and no logits.

Shapes: `N tokens . D hidden . V vocab . R rows`.
"""

from dataclasses import replace

import pytest
import torch

from polaris_kernels import LossSpec, linear_grpo_loss, linear_logps, release_workspace
from polaris_kernels.backends import get_backend, native_library, native_tiles
from polaris_kernels.backends.base import Wanted
from polaris_kernels.backends.native_library import NativeLibrary
from polaris_kernels.backends.native_multiply import Multiplier, bf16_is_fast
from polaris_kernels.backends.workspace import _free_buffers
from polaris_kernels.objective import TokenGradients
from polaris_kernels.problem import make_problem
from polaris_kernels.testing import no_worse_than_torch

from .cases import as_float32, assert_close, grads, make_head, make_rows, reference_loss

pytestmark = pytest.mark.skipif(not native_library.PATH.exists(), reason=native_library.REBUILD)
N, D, V, R = 60, 8, 1_301, 6
EVERYTHING = Wanted(hidden=True, weight=True, bias=True)


@pytest.fixture(autouse=True)
def wide_products():
    """CPUs whose fastest bf16 product rounds its result have no tiles, as dX would suffer."""
    if bf16_is_fast() and not Multiplier(NativeLibrary()).widens_bf16():
        pytest.skip("this CPU multiplies bf16 fast, but not into fp32")


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 512 columns in problems of any size; returns how many calls took them."""
    calls = []
    run = native_tiles._Tiles.run
    monkeypatch.setattr(native_tiles, "_LEAST_BYTES", 0)
    monkeypatch.setattr(native_tiles, "_TILE_BYTES", 1)
    monkeypatch.setattr(native_tiles._Tiles, "run", lambda *a: calls.append(a) or run(*a))
    return calls


def loss_of(head, rows, **options):
    options = {"spec": LossSpec(loss_type="dapo"), "backend": "native", **options}
    return linear_grpo_loss(
        head.hidden, head.weight, head.targets, rows=rows, bias=head.bias,
        **head.options, **options,
    )  # fmt: skip


def problem_of(head, **changes):
    given = {
        "bias": None, "temperature": 1.0, "softcap": None, "logit_scale": 1.0,
        "logits_dtype": "fp32", "chunk_bytes": None, "caller": "test", **changes,
    }  # fmt: skip
    return make_problem(head.hidden, head.weight, head.targets, **given)


def is_tiled(num_tokens=2_048, hidden_size=64, vocab_size=151_936, dtype=torch.float32, **rest):
    """What the backend would do with a problem of this size, without its memory."""
    problem = problem_of(make_head(1, 1, 1))
    shaped = replace(
        problem,
        hidden=torch.empty(1, 1, dtype=dtype).expand(num_tokens, hidden_size),
        weight=torch.empty(1, 1, dtype=dtype).expand(vocab_size, hidden_size),
        **rest,
    )
    backend = get_backend(torch.device("cpu"), "native")
    return native_tiles.takes_tiles(backend._gemms(shaped))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"softcap": 5.0, "temperature": 0.7},
        {"logit_scale": 1.5, "temperature": torch.linspace(0.5, 2.0, N, dtype=torch.float64)},
    ],
    ids=["plain", "softcap", "temperatures"],
)
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("loss_type", ["dapo", "gspo"])
def test_loss_and_gradients_match_the_reference(loss_type, bias, options, small_tiles):
    head = make_head(N, D, V, bias=bias, **options)
    rows, spec = make_rows(head, R), LossSpec(loss_type=loss_type, entropy_coef=0.1)
    ours = loss_of(head, rows, spec=spec)
    exact = reference_loss(head, rows, spec)
    assert_close(ours.loss, exact)
    for a, b in zip(grads(ours.loss, head), grads(exact, head), strict=True):
        assert_close(a, b)
    assert len(small_tiles) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
def test_no_worse_than_torch_in_the_same_dtype(dtype, small_tiles):
    exact_head = make_head(200, 32, 5_001, scale=0.3).to(dtype).to(torch.float64)
    head = exact_head.to(dtype)
    rows, spec = make_rows(exact_head, R), LossSpec(loss_type="dapo")
    ours = loss_of(head, as_float32(rows)).loss
    plain = reference_loss(head, as_float32(rows), spec)
    exact = reference_loss(exact_head, rows, spec)
    found = (grads(*x) for x in ((ours, head), (plain, head), (exact, exact_head)))
    for a, b, c, name in zip(*found, ("hidden", "weight"), strict=True):
        assert a.dtype == dtype
        no_worse_than_torch(a, b, c, name=name)
    assert small_tiles


@pytest.mark.parametrize("kept", [0, 1, 20, 59])
def test_tokens_without_a_coefficient_reach_no_back_gemm(kept, small_tiles):
    head = make_head(N, D, V)
    factor = torch.zeros(N, dtype=torch.float64)
    factor[torch.randperm(N, generator=torch.Generator().manual_seed(1))[:kept]] = 1.5
    found, made = get_backend(torch.device("cpu"), "native").gradients(
        problem_of(head), lambda *_: TokenGradients(factor), EVERYTHING, entropy_gradient=False
    )
    plain = head.plain().logps
    assert_close(found.logp, plain)
    for a, b in zip((made.hidden, made.weight), grads((plain * factor).sum(), head), strict=True):
        assert_close(a, b)
    # from three quarters of the tokens on all go through
    tokens = {0: [], 1: [1], 20: [20], 59: [N]}[kept]
    assert [call[0].problem.num_tokens for call in small_tiles] == tokens


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_the_weight_gradient_is_added_to_what_is_there(kind, small_tiles):
    head = make_head(N, 32, V).to(torch.bfloat16)
    g = torch.Generator().manual_seed(2)
    start = torch.randn(V, 32, generator=g).to(kind)
    backend, total = get_backend(torch.device("cpu"), "native"), start.clone()

    def gradient(into=None):
        return backend.gradients(
            problem_of(head),
            lambda _, s: TokenGradients(torch.ones_like(s.logp)),
            Wanted(hidden=False, weight=True, bias=False),
            entropy_gradient=False,
            weight_into=into,
        )[1]

    alone = gradient().weight
    assert alone.dtype == torch.bfloat16
    assert gradient(total).weight is None
    rounding = torch.finfo(kind).eps * total.abs().max() + 2**-8 * alone.abs().max()
    assert (total.double() - start.double() - alone.double()).abs().max() <= rounding
    assert not torch.equal(total, start)


def test_ratios_are_exactly_one_on_policy(small_tiles):
    head = make_head(N, 32, V).to(torch.bfloat16)
    with torch.no_grad():
        old = linear_logps(head.hidden, head.weight, head.targets, backend="native").logps
    rows = as_float32(make_rows(head.to(torch.float64), R))
    here = loss_of(head, replace(rows, old_logps=None)).loss
    assert torch.equal(loss_of(head, replace(rows, old_logps=old)).loss, here)


def test_bitwise_repeatable_at_any_thread_count(small_tiles, monkeypatch):
    head = make_head(N, 32, V).to(torch.bfloat16)
    rows = as_float32(make_rows(head.to(torch.float64), R))
    runs = []
    for threads in (1, 1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        runs.append(grads(loss_of(head, rows).loss, head))
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_autocast_rounds_no_gradient_of_a_wide_weight(small_tiles):
    head = make_head(N, 32, V).to(torch.float32)
    rows = as_float32(make_rows(head.to(torch.float64), R))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(head, rows).loss
    weight = grads(loss, head)[1]
    assert small_tiles and weight.dtype == torch.float32
    assert not torch.equal(weight, weight.bfloat16().float())


def test_neither_logits_nor_a_wide_weight_gradient_are_made(monkeypatch):
    N, D, V = 640, 64, 60_001
    release_workspace()
    made = []
    for name in ("empty", "zeros"):
        make = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *a, _make=make, **k: made.append(x := _make(*a, **k)) or x
        )
    problem = problem_of(make_head(N, D, V, scale=0.1).to(torch.bfloat16))
    backend = get_backend(torch.device("cpu"), "native")
    made.clear()
    backend.gradients(
        problem,
        lambda _, s: TokenGradients(torch.ones_like(s.logp)),
        Wanted(hidden=True, weight=True, bias=False),
        entropy_gradient=False,
    )
    logits, rows = native_tiles.tile_bytes(backend._gemms(problem))
    sizes = [x.numel() * x.element_size() for x in made]
    assert max(sizes) == logits < N * V
    assert [x.dtype for x in made if x.shape == (V, D)] == [torch.bfloat16]
    kept = sum(x.numel() * x.element_size() for xs in _free_buffers().values() for x in xs)
    panels = backend.lib.gemm_workspace(torch.bfloat16, torch.bfloat16)
    assert kept <= logits + max(rows, panels) + panels


def test_wide_heads_small_problems_and_small_budgets_are_cut_by_tokens():
    assert is_tiled()
    assert not is_tiled(hidden_size=65)
    assert not is_tiled(num_tokens=64)
    assert not is_tiled(chunk_bytes=32 * 2**20)
    # a tile of so many tokens would not fit the default budget
    assert is_tiled(num_tokens=2**18) and not is_tiled(num_tokens=2**19)
    # a row of bf16 is half as wide, where it is multiplied as it is
    narrow = Multiplier(NativeLibrary()).widens_bf16()
    assert is_tiled(hidden_size=128, dtype=torch.bfloat16) is narrow
