"""The native backend around its row pass: GEMM plans, dropped rows, loading, and the build.

Shapes: `N tokens . D hidden . V vocab`.
"""

import importlib.util
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polaris_kernels import active_backend, backends, linear_grpo_loss, linear_logps
from polaris_kernels.backends import (
    ENVIRONMENT_KEY,
    get_backend,
    native_gemm,
    native_library,
    native_multiply,
)
from polaris_kernels.backends.native_library import LibraryError, NativeLibrary
from polaris_kernels.testing import no_worse_than_torch

from .cases import Head, assert_close, grads, make_head, make_rows

needs_library = pytest.mark.skipif(not native_library.PATH.exists(), reason=native_library.REBUILD)
BUILD = Path(__file__).parents[2] / "csrc" / "build.py"


@pytest.fixture(params=["wide", "bf16", "mkl", "own"])
def gemms(request, monkeypatch):
    """Each way to multiply bf16, whatever this CPU is fast at."""
    if request.param == "mkl" and native_multiply.mkl_gemm() is None:
        pytest.skip("this torch has no MKL")
    if request.param == "own" and not NativeLibrary().has_gemm(torch.bfloat16):
        pytest.skip("this CPU or build has no bf16 product")
    for module in (native_gemm, native_multiply):
        monkeypatch.setattr(module, "bf16_is_fast", lambda: request.param not in ("wide", "own"))
    monkeypatch.setattr(native_multiply, "mkl_is_fast", lambda: request.param == "mkl")
    own = request.param == "own"
    monkeypatch.setattr(
        native_multiply.Multiplier,
        "has_kernel",
        lambda self, dtype: own and self.library.has_gemm(dtype),
    )
    return request.param


def logps(head: Head, **options):
    return linear_logps(head.hidden, head.weight, head.targets, backend="native", **options)


@needs_library
@pytest.mark.parametrize("logits_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("rows_in_chunk", [None, 40], ids=["one_chunk", "many_chunks"])
def test_bf16_is_no_worse_than_torch_with_any_gemms(gemms, rows_in_chunk, logits_dtype):
    exact_head = make_head(200, 48, 5_001, scale=0.3).to(torch.bfloat16).to(torch.float64)
    head = exact_head.to(torch.bfloat16)
    chunk_bytes = None if rows_in_chunk is None else rows_in_chunk * 5_001 * 4
    ours = logps(head, logits_dtype=logits_dtype, chunk_bytes=chunk_bytes)
    plain, exact = head.plain().logps, exact_head.plain().logps
    no_worse_than_torch(ours.logps, plain, exact, name="logps")
    found = (grads(x.sum(), h) for x, h in ((ours.logps, head), (plain, head), (exact, exact_head)))
    for a, b, c, name in zip(*found, ("hidden", "weight"), strict=True):
        assert a.dtype == torch.bfloat16
        no_worse_than_torch(a, b, c, name=name)


@needs_library
@pytest.mark.parametrize("rows_in_chunk", [8, 64])
def test_weight_gradient_over_many_chunks_is_as_good_as_one_gemm(gemms, rows_in_chunk):
    exact_head = make_head(512, 32, 4_099).to(torch.bfloat16).to(torch.float64)
    head = exact_head.to(torch.bfloat16)
    exact = grads(exact_head.plain().logps.sum(), exact_head)[1]
    one = grads(logps(head).logps.sum(), head)[1]
    chunk_bytes = rows_in_chunk * 4_099 * 4
    many = grads(logps(head, chunk_bytes=chunk_bytes).logps.sum(), head)[1]
    no_worse_than_torch(many, one, exact, factor=1.5)


@needs_library
def test_bf16_repeats_to_the_bit(gemms):
    head = make_head(64, 32, 4_099, dtype=torch.bfloat16)
    first, second = (grads(logps(head, chunk_bytes=2**18).logps.sum(), head) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@needs_library
@pytest.mark.parametrize("rows_in_chunk", [1, 7, 30, 200])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 0.9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_rows_without_coefficient_are_dropped_unseen(share, rows_in_chunk, dtype, gemms):
    head = make_head(200, 8, 33, dtype=dtype, bias=True)
    weight = torch.rand(200, generator=torch.Generator().manual_seed(3)) < share
    calls = []

    def loss_fn(found, entropy, tokens):
        calls.append(len(found))
        return -found * tokens.advantages

    rows = make_rows(head, 200)
    rows.row_of_token.copy_(torch.arange(200))
    rows.completion_mask.fill_(True)
    rows.advantages.copy_(weight)
    itemsize = 8 if dtype == torch.float64 else 4
    out = linear_grpo_loss(
        head.hidden, head.weight, head.targets, rows=rows, loss_fn=loss_fn, bias=head.bias,
        chunk_bytes=rows_in_chunk * 33 * itemsize, backend="native",
    )  # fmt: skip
    found = grads(out.loss, head)
    assert sum(calls) == 200
    wide = head.to(torch.float64)
    plain = wide.plain()
    exact = grads(-(plain.logps * weight).sum() / 200, wide)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-2
    for a, b in zip(found, exact, strict=True):
        assert_close(a.double(), b, tolerance)
    assert (found[0][~weight] == 0).all()


@needs_library
def test_rows_kept_of_many_chunks_are_multiplied_at_once(monkeypatch):
    seen = []
    multiply = native_gemm.Gemms.hidden_gradient_into

    def watch(self, dz, out):
        seen.append(dz.shape[0])
        multiply(self, dz, out)

    monkeypatch.setattr(native_gemm.Gemms, "hidden_gradient_into", watch)
    head = make_head(256, 8, 33, dtype=torch.float32)
    rows = make_rows(head, 256)
    rows.row_of_token.copy_(torch.arange(256))
    rows.completion_mask.fill_(True)
    rows.advantages.copy_((torch.arange(256) % 5 == 0).float())
    linear_grpo_loss(
        head.hidden, head.weight, head.targets, rows=rows, chunk_bytes=64 * 33 * 4,
        loss_fn=lambda logps, entropy, tokens: -logps * tokens.advantages, backend="native",
    )  # fmt: skip
    # 52 of 256 rows in chunks of 64: all of them fit one buffer
    assert len(seen) <= 2 and sum(seen) == 52


@needs_library
def test_autocast_rounds_no_gradient_of_a_wide_weight(gemms):
    """bf16 hidden states meet an fp32 weight: the weight's gradient is fp32 to the last bit."""
    wide = make_head(64, 16, 300, dtype=torch.float32)
    head = replace(wide, hidden=wide.hidden.detach().bfloat16().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_grpo_loss(
            head.hidden, head.weight, head.targets, rows=make_rows(wide), backend="native"
        ).loss
    weight = grads(loss, head)[1]
    assert weight.dtype == torch.float32
    if gemms != "bf16":
        assert not torch.equal(weight, weight.bfloat16().float())
    rounded = wide.to(torch.bfloat16)
    same = linear_grpo_loss(
        rounded.hidden, rounded.weight, rounded.targets, rows=make_rows(wide), backend="native"
    ).loss
    assert torch.equal(weight.bfloat16(), grads(same, rounded)[1])


@needs_library
def test_autocast_does_not_narrow_what_is_summed_wide(monkeypatch):
    monkeypatch.setattr(NativeLibrary, "has_gemm", lambda self, dtype: False)
    monkeypatch.setattr(native_gemm, "bf16_is_fast", lambda: False)
    head = make_head(64, 16, 300, dtype=torch.float32)
    rounded = head.to(torch.bfloat16)
    rows = make_rows(head)

    def found(head):
        loss = linear_grpo_loss(
            head.hidden, head.weight, head.targets, rows=rows, backend="native"
        ).loss
        return grads(loss, head)

    with torch.autocast("cpu", torch.bfloat16):
        inside = found(head)
    for a, b in zip(inside, found(rounded), strict=True):
        assert not torch.equal(a, a.bfloat16().float())
        assert torch.equal(a.bfloat16(), b)


@pytest.mark.parametrize(
    ("vendor", "flags", "fast"),
    [
        ("GenuineIntel", {"amx_bf16"}, True),
        ("GenuineIntel", {"avx512_bf16"}, True),
        ("GenuineIntel", {"avx512f"}, False),
        ("AuthenticAMD", {"avx512_bf16"}, False),
        ("", set(), False),
    ],
)
def test_mkls_bf16_is_trusted_by_cpu_and_not_by_a_stopwatch(vendor, flags, fast, monkeypatch):
    monkeypatch.setattr(native_multiply, "_cpu", lambda: (vendor, frozenset(flags)))
    monkeypatch.setattr(native_multiply, "bf16_is_fast", lambda: True)
    monkeypatch.setattr(native_multiply, "mkl_gemm", lambda: print)
    assert native_multiply.mkl_is_fast.__wrapped__() is fast


@needs_library
def test_it_is_the_cpus_first_choice(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_KEY, raising=False)
    assert active_backend("cpu") == "native"
    monkeypatch.setenv(ENVIRONMENT_KEY, "torch")
    assert active_backend("cpu") == "torch"


@needs_library
def test_it_refuses_other_devices():
    with pytest.raises(ValueError, match="runs on the CPU only"):
        get_backend(torch.device("meta"), "native")


@needs_library
def test_a_library_of_another_version_says_what_to_do(monkeypatch):
    found = native_library.ABI_VERSION
    monkeypatch.setattr(native_library, "ABI_VERSION", 99)
    with pytest.raises(
        LibraryError, match=rf"version {found} and this package needs 99.*build\.py"
    ):
        NativeLibrary()


def test_a_library_that_does_not_load_says_what_to_do(tmp_path):
    (tmp_path / "broken.so").write_text("no library")
    with pytest.raises(LibraryError, match=r"does not load.*build\.py"):
        NativeLibrary(tmp_path / "broken.so")


@needs_library
def test_the_environment_chooses_the_instruction_set(monkeypatch):
    library = NativeLibrary()
    before = library.level
    monkeypatch.setenv(native_library.LEVEL_KEY, "portable")
    assert NativeLibrary().level == "portable"
    monkeypatch.setenv(native_library.LEVEL_KEY, "abacus")
    with pytest.raises(LibraryError, match=r"no level 'abacus'.*POLARIS_KERNELS_CPU_LEVEL"):
        NativeLibrary()
    library.set_level(before)


@pytest.mark.parametrize("how", ["missing", "stale"])
def test_a_first_choice_that_is_missing_is_replaced_and_a_log_line_says_so(
    how, monkeypatch, caplog
):
    def stale(device):
        raise LibraryError("the library is stale")

    factories = {"torch": backends._FACTORIES["torch"]}
    if how == "stale":
        factories["native"] = stale
    monkeypatch.setattr(backends, "_FACTORIES", factories)
    monkeypatch.setattr(backends, "_instances", {})
    monkeypatch.setattr(backends, "_chosen", {})
    monkeypatch.delenv(ENVIRONMENT_KEY, raising=False)
    with caplog.at_level(logging.INFO, "polaris_kernels"):
        assert active_backend("cpu") == active_backend("cpu") == "torch"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith("head on cpu: torch backend (")
    assert ("build.py" if how == "missing" else "stale") in record.message
    with pytest.raises((ValueError, LibraryError), match=r"build\.py|stale"):
        get_backend(torch.device("cpu"), "native")


def load_build():
    spec = importlib.util.spec_from_file_location("csrc_build", BUILD)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not BUILD.exists(), reason="no checkout: csrc is not installed")
def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    build = load_build()
    with pytest.raises(build.BuildError, match="CXX=no-such-compiler -O1 is not there"):
        build.build(tmp_path / "x.so")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not BUILD.exists(), reason="no checkout: csrc is not installed")
def test_a_compiler_that_fails_is_quoted_and_leaves_the_old_library(monkeypatch, tmp_path):
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\necho this compiler is a fake\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    target = tmp_path / "x.so"
    target.write_text("old")
    build = load_build()
    with pytest.raises(build.BuildError, match="this compiler is a fake"):
        build.build(target)
    assert target.read_text() == "old"
